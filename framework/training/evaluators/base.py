"""The evaluator protocol, and how an evaluator is run on a model that may be sharded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from framework.data.pipeline import DataPipeline
from framework.evaluation.examples import Example
from framework.evaluation.suite import Results
from framework.model.language_action import LanguageActionModel
from framework.parallel.mesh import DataRank
from framework.parallel.parallelism import Parallelism
from framework.parallel.sharding import unsharded
from framework.run.console import progress_bar
from framework.scene.types import Scene


class Evaluator(Protocol):
    """An evaluation run after each stage, one of a recipe's `evals`."""

    @property
    def before_training(self) -> bool:
        """Whether to run before the first stage too."""
        ...

    def evaluate(
        self, model: LanguageActionModel, data: DataPipeline, dp_rank: DataRank
    ) -> tuple[Results, list[Example]]:
        """Evaluate `model`, whose weights are all on this rank, and leave it as it was.

        Returns the results over all ranks, and this rank's scenes with the model's answers.
        """
        ...


def evaluate(
    evaluator: Evaluator, model: LanguageActionModel, data: DataPipeline, parallel: Parallelism
) -> tuple[Results, list[Example]]:
    """Run `evaluator` on `model` in the precision of training, with all weights gathered on every rank (collective)."""
    model.to(parallel.device)
    with unsharded(model), parallel.as_trained():
        return evaluator.evaluate(model, data, parallel.data_rank())


def batches_of_rank(scenes: Sequence[Scene], dp_rank: DataRank, batch_size: int) -> Iterator[Sequence[Scene]]:
    """This rank's share of `scenes`, in batches of at most `batch_size`, under a progress bar."""
    mine = scenes[dp_rank.rank :: dp_rank.world]
    with progress_bar("scenes driven", len(mine)) as bar:
        for start in range(0, len(mine), batch_size):
            yield mine[start : start + batch_size]
            if bar is not None:
                bar.update(min(start + batch_size, len(mine)))
