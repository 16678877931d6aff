"""The evaluator protocol, and how an evaluator is run on a model that may be sharded."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, runtime_checkable

from framework.checkpoint.rank_group import RankGroup
from framework.data.pipeline import DataPipeline
from framework.data.render.tasks import Task
from framework.data.stream.mixture import Source, read_scenes
from framework.model.language_action import LanguageActionModel
from framework.parallel.collectives import all_gather_objects
from framework.parallel.mesh import DataRank
from framework.parallel.parallelism import Parallelism
from framework.parallel.sharding import unsharded
from framework.run.console import progress_bar
from framework.scene.types import Scene, SceneError

if TYPE_CHECKING:  # torchmetrics takes seconds to import, and a plan needs none of it
    from framework.evaluation.examples import Example
    from framework.evaluation.results import Results
    from framework.evaluation.scene_rows import SceneRow

log = logging.getLogger(__name__)
Made = TypeVar("Made")


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


@runtime_checkable
class DryRunnable(Protocol):
    """An evaluator that can tell before training what would make it fail after."""

    def dry_run(self, data: DataPipeline, processor: Any) -> None:
        """Evaluate the truth of the first scenes instead of a model's answers. `processor` is the backbone's. The first
        rank does so alone: nothing in here may wait for others.

        Raises `ValueError` or `SceneError` for a task or scenes that cannot be evaluated.
        """
        ...


DRY_RUN_SCENES = 4
"""Scenes that a dry run takes."""
PATIENCE_S = 1800.0
"""How long the other ranks wait for the first to dry-run the evals, whose scenes it may have to write, in seconds."""


def dry_run(evals: Mapping[str, Evaluator], data: DataPipeline, processor: Any) -> None:
    """Dry-run the evaluators on the first rank (collective). Every rank raises `ValueError` with all that would fail,
    by eval, when it is too late.
    """
    if problems := RankGroup(PATIENCE_S).on_rank0(lambda: _problems(evals, data, processor)):
        raise ValueError("\n".join(["these evals would fail after training:", *problems]))


def _problems(evals: Mapping[str, Evaluator], data: DataPipeline, processor: Any) -> list[str]:
    problems = []
    for name, evaluator in evals.items():
        if isinstance(evaluator, DryRunnable):
            try:
                evaluator.dry_run(data, processor)
            except (ValueError, OSError) as error:
                problems.append(f"evals.{name}: {error}")
    return problems


def first_scenes(source: Source, limit: int | None) -> list[Scene]:
    """The scenes of a dry run. Raises `ValueError` where there are none."""
    scenes = list(read_scenes(source, DRY_RUN_SCENES if limit is None else min(limit, DRY_RUN_SCENES)))
    if not scenes:
        raise ValueError("source: has no scenes; give another, or scenes above 0")
    return scenes


def task_of(data: DataPipeline, name: str) -> Task:
    """The task `name` of the data. Raises `ValueError` where it has none."""
    if name not in data.tasks:
        raise ValueError(f"task {name}: is none of data.tasks; there are: {', '.join(data.tasks)}")
    return data.tasks[name]


def evaluate(
    evaluator: Evaluator, model: LanguageActionModel, data: DataPipeline, parallel: Parallelism
) -> tuple[Results, list[Example], list[SceneRow]]:
    """Run `evaluator` on `model` in the precision of training, with all weights gathered on every rank (collective).

    Returns the results over all ranks, this rank's examples, and all ranks' rows of scenes.
    """
    from framework.evaluation.results import MODEL
    from framework.evaluation.scene_rows import scene_rows
    from framework.scene.types import ALL

    model.to(parallel.device)
    dp_rank = parallel.data_rank()
    with unsharded(model), parallel.as_trained():
        results, examples = evaluator.evaluate(model, data, dp_rank)
    for section, methods in results.items():
        if again := methods.get(MODEL, {}).get("repeated", {}).get(ALL):
            log.warning(
                "%s: %.0f samples were judged more than once, and count once; give the source each scene once, and "
                "scenes distinct ids", section, again,
            )  # fmt: skip
    rows = all_gather_objects(scene_rows(examples), dp_rank.group)
    return results, examples, [row for of_rank in rows for row in of_rank]


@dataclass
class LeftOut:
    """The scenes that an evaluation cannot use: they are named in the log, and counted."""

    scenes: set[str] = field(default_factory=set)
    """Their ids."""

    def add(self, scene: Scene, error: SceneError) -> None:
        """Leave out `scene`, on which `error` was raised."""
        log.warning("scene %s is left out of the evaluation: %s", scene.id, error)
        self.scenes.add(scene.id)

    def parts(self, scenes: Sequence[Scene], attempt: Callable[[list[int]], Made]) -> Iterator[tuple[list[int], Made]]:
        """Yields rows of `scenes` with what `attempt` makes of them: all at once, or one by one where it raises
        `SceneError`, without those on which it does again."""
        rows = list(range(len(scenes)))
        try:
            whole = attempt(rows)
        except SceneError:
            log.info("some of %d scenes cannot be evaluated; they are tried one by one", len(rows))
        else:
            yield rows, whole
            return
        for row in rows:
            try:
                made = attempt([row])
            except SceneError as error:
                self.add(scenes[row], error)
            else:
                yield [row], made

    def counted(self, results: Results, section: str, group: Any) -> Results:
        """`results` with the number of scenes left out over all ranks as the metric `left_out` of `section`
        (collective)."""
        names = {name for each in all_gather_objects(sorted(self.scenes), group) for name in each}
        if not names:
            return results
        from framework.evaluation.results import MODEL
        from framework.scene.types import ALL

        methods = results.setdefault(section, {})
        methods[MODEL] = {**methods.get(MODEL, {}), "left_out": {ALL: float(len(names))}}
        return results


def batches_of_rank(scenes: Sequence[Scene], dp_rank: DataRank, batch_size: int) -> Iterator[Sequence[Scene]]:
    """This rank's share of `scenes`, in batches of at most `batch_size`, under a progress bar."""
    mine = scenes[dp_rank.rank :: dp_rank.world]
    with progress_bar("scenes driven", len(mine)) as bar:
        for start in range(0, len(mine), batch_size):
            yield mine[start : start + batch_size]
            if bar is not None:
                bar.update(min(start + batch_size, len(mine)))
