"""The data of a benchmark that measures no reading: batches that were rendered before, again and again."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

from framework.data.stream.loader import StepLoader
from framework.scene.batch import MicroBatch
from framework.training.datamodule import StageData


class ReplayLoader(StepLoader):
    """Hands out the same batches for ever, and reports as a loader does."""

    def __init__(self, batches: list[list[MicroBatch]]) -> None:
        self.batches = batches
        self.workers = 0
        self.metrics = {f"data/{name}_s": 0.0 for name in ("wait", "fetch", "render")}

    def __iter__(self) -> Iterator[list[MicroBatch]]:
        return itertools.cycle(self.batches)

    def commit(self, step: int, slices: int = 1) -> None:
        """Nothing to commit."""

    def start_prefetch(self) -> None:
        """Nothing to fetch."""

    def close(self) -> None:
        """Nothing to end."""


class ReplayData(StageData):
    """A stage's data without its reading."""

    def __init__(self, batches: list[list[MicroBatch]]) -> None:
        nothing: Any = None  # `setup`, which would use the arguments, is overridden
        super().__init__(nothing, nothing, nothing, nothing, stage="", samples=0, seed=0, folder=nothing)
        self.batches = batches

    def setup(self, stage: str) -> None:
        """The batches that were read before."""
        self.loader = ReplayLoader(self.batches)
