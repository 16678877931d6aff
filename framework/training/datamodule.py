"""A stage's data under Lightning."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

from lightning.pytorch import LightningDataModule, Trainer

from framework.data.pipeline import DataPipeline, StageRun
from framework.data.stream.loader import Prompts, StepLoader
from framework.data.stream.mixture import Mixture
from framework.parallel.parallelism import Parallelism


def data_of(trainer: Trainer) -> StageData:
    """The data of the stage that `trainer` trains."""
    data = trainer.datamodule  # type: ignore[attr-defined]  # Lightning sets it in fit
    assert isinstance(data, StageData)
    return data


def loader_of(trainer: Trainer) -> StepLoader:
    """The loader of the stage that `trainer` trains."""
    return data_of(trainer).loader


class StageData(LightningDataModule):
    """The loader of `mixture` through `feed`. It exists once Lightning knows this process's rank.

    With `prompts` it gives prompts to be answered, and the module draws them itself when their turn comes: Lightning
    would fetch a step ahead, and is given nothing but turns.
    """

    loader: StepLoader

    def __init__(
        self,
        feed: DataPipeline,
        mixture: Mixture,
        processor: Any,
        run: StageRun,
        parallel: Parallelism,
        prompts: bool = False,
    ) -> None:
        super().__init__()
        self.feed = feed
        self.mixture = mixture
        self.processor = processor
        self.run = run
        self.parallel = parallel
        self.prompts = prompts

    def setup(self, stage: str) -> None:
        """Open the mixture for this rank."""
        dp_rank = self.parallel.data_rank()
        cut = Prompts() if self.prompts else None
        self.loader = self.feed.loader(
            self.mixture, self.processor, self.run, dp_rank.world, dp_rank.rank, dp_rank.is_writer, cut
        )
        self.loader.warm()

    def train_dataloader(self) -> Iterable[Any]:
        """The endless loader, one item an optimizer step."""
        return itertools.repeat([]) if self.prompts else self.loader

    def teardown(self, stage: str) -> None:
        """End what runs beside."""
        self.loader.close()
