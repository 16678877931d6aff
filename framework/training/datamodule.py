"""A stage's data under Lightning."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningDataModule, Trainer

from framework.data.pipeline import DataPipeline
from framework.data.stream.batcher import PromptBatcher
from framework.data.stream.loader import StepLoader
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


class StepTicks:
    """Yields an empty batch for every optimizer step, without end: Lightning's dataloader in reinforcement learning.

    The step draws its prompts from the stage's `StepLoader` itself, for two reasons. It draws again until enough groups
    pass the filter, so that it cannot know in advance how many it needs. And Lightning fetches a batch before the step
    that precedes it has ended, when the prompt curriculum has not counted that step's answers.
    """

    def __iter__(self) -> Iterator[list[Any]]:
        while True:
            yield []


class StageData(LightningDataModule):
    """The loader of a stage, which exists once Lightning knows this process's rank.

    Args:
        pipeline: The recipe's data, with the stage's own batch.
        mixture: The stage's streams.
        processor: The backbone's processor.
        parallel: Tells this process's data-parallel rank.
        stage: The stage's name.
        samples: Samples that the stage trains in all.
        seed: Seed of the order of samples, and of what a policy samples.
        folder: The run's folder.
        attempt: The run's attempt, counted from 1.
        prompts: Whether the loader yields prompts to be answered, which the module draws itself, see `StepTicks`.
    """

    loader: StepLoader

    def __init__(
        self,
        pipeline: DataPipeline,
        mixture: Mixture,
        processor: Any,
        parallel: Parallelism,
        *,
        stage: str,
        samples: int,
        seed: int,
        folder: Path,
        attempt: int = 1,
        prompts: bool = False,
    ) -> None:
        super().__init__()
        self.pipeline = pipeline
        self.mixture = mixture
        self.processor = processor
        self.parallel = parallel
        self.stage = stage
        self.samples = samples
        self.seed = seed
        self.folder = folder
        self.attempt = attempt
        self.prompts = prompts

    def setup(self, stage: str) -> None:
        """Open the mixture for this rank."""
        dp_rank = self.parallel.data_rank()
        self.loader = self.pipeline.loader(
            self.mixture,
            self.processor,
            stage=self.stage,
            samples=self.samples,
            seed=self.seed,
            folder=self.folder,
            attempt=self.attempt,
            world=dp_rank.world,
            rank=dp_rank.rank,
            is_writer=dp_rank.is_writer,
            batcher=PromptBatcher() if self.prompts else None,
        )
        self.loader.start_prefetch()

    def train_dataloader(self) -> Iterable[Any]:
        """The loader, one item an optimizer step; for prompts, `StepTicks`."""
        return StepTicks() if self.prompts else self.loader

    def teardown(self, stage: str) -> None:
        """Stops fetching shards."""
        self.loader.close()
