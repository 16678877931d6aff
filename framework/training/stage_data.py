"""A stage's data under Lightning."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningDataModule, Trainer

from framework.data.feed import Feed, StageRun
from framework.data.loader import StepLoader
from framework.data.mixture import Mixture
from framework.parallel.placement import Placement


def loader_of(trainer: Trainer) -> StepLoader:
    """The loader of the stage that `trainer` trains."""
    data = trainer.datamodule  # type: ignore[attr-defined]  # Lightning sets it in fit
    assert isinstance(data, StageData)
    return data.loader


class StageData(LightningDataModule):
    """The loader of `mixture` through `feed`. It exists once Lightning knows this process's rank."""

    loader: StepLoader

    def __init__(self, feed: Feed, mixture: Mixture, processor: Any, run: StageRun, placement: Placement) -> None:
        super().__init__()
        self.feed = feed
        self.mixture = mixture
        self.processor = processor
        self.run = run
        self.placement = placement

    def setup(self, stage: str) -> None:
        """Open the mixture for this rank."""
        place = self.placement.data_rank()
        self.loader = self.feed.loader(self.mixture, self.processor, self.run, place.world, place.rank, place.writes)
        self.loader.warm()

    def train_dataloader(self) -> StepLoader:
        """The endless loader, one item an optimizer step."""
        return self.loader

    def teardown(self, stage: str) -> None:
        """End what runs beside."""
        self.loader.close()
