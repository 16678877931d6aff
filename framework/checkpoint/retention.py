"""Retention rules: which committed checkpoints to keep. Combined in `checkpoint.retention`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

from framework.checkpoint.history import Checkpoint, Retention
from framework.recipe.component import component
from framework.recipe.ranges import PositiveCount
from framework.run.evaluations import Wanted, best_of, figure_of, pending


@component
class KeepLast:
    """Keeps the newest checkpoints.

    Args:
        count: How many.
    """

    def __init__(self, count: PositiveCount = 3) -> None:
        if count < 1:
            raise ValueError(f"checkpoint.retention: count {count}; keep at least 1")
        self.count = count

    def keep(self, checkpoints: Sequence[Checkpoint]) -> set[Checkpoint]:
        """The newest `count` of `checkpoints`."""
        return set(sorted(checkpoints)[-self.count :])


@component
class KeepEvery:
    """Keeps every checkpoint whose step is a multiple of `steps`, forever.

    Args:
        steps: Optimizer steps between kept checkpoints.
    """

    def __init__(self, steps: PositiveCount) -> None:
        if steps < 1:
            raise ValueError(f"checkpoint.retention: steps {steps}; give at least 1")
        self.steps = steps

    def keep(self, checkpoints: Sequence[Checkpoint]) -> set[Checkpoint]:
        """Those of `checkpoints` at multiples of `steps`."""
        return {checkpoint for checkpoint in checkpoints if checkpoint.step % self.steps == 0}


@component
class KeepBest:
    """Keeps the checkpoints with the best training metric.

    A checkpoint's metrics are means over the steps since the checkpoint before it. A checkpoint without the metric, or
    with a non-finite value, is never among the best.

    Args:
        metric: Name of the metric.
        mode: `min` when lower is better, `max` when higher is.
        count: How many to keep.
    """

    def __init__(self, metric: str, mode: Literal["min", "max"] = "min", count: PositiveCount = 1) -> None:
        if count < 1:
            raise ValueError(f"checkpoint.retention: count {count}; keep at least 1")
        self.metric = metric
        self.mode = mode
        self.count = count

    def keep(self, checkpoints: Sequence[Checkpoint]) -> set[Checkpoint]:
        """The best `count` of `checkpoints`; of equals, the newest."""
        measured = [each for each in sorted(checkpoints) if math.isfinite(each.metrics.get(self.metric, math.nan))]
        sign = 1 if self.mode == "max" else -1
        return set(sorted(measured, key=lambda each: sign * each.metrics[self.metric])[-self.count :])


@component
class KeepForEvaluation:
    """Keeps checkpoints that still have to be evaluated, and the best of those that were.

    Keeps none in a run without evaluation jobs (see `framework.run.evaluations`).
    """

    def keep(self, checkpoints: Sequence[Checkpoint]) -> set[Checkpoint]:
        """Those of `checkpoints` without a result yet, and the best of those with one; of equals, the newest."""
        by_step = {checkpoint.step: checkpoint for checkpoint in sorted(checkpoints)}
        run = next((checkpoint.folder.parents[1] for checkpoint in by_step.values()), None)
        if run is None or (wanted := Wanted.read(run)) is None:
            return set()
        unevaluated = {each for step, each in by_step.items() if pending(run, step, each.hash, wanted)}
        figures = {step: figure_of(run, step, each.hash, wanted) for step, each in by_step.items()}
        best = best_of({step: value for step, value in figures.items() if value is not None}, wanted.mode)
        return unevaluated if best is None else unevaluated | {by_step[best]}


@component
class KeepAny:
    """Keeps what any rule keeps.

    Args:
        rules: Retention rules by name.
    """

    def __init__(self, rules: Mapping[str, Retention]) -> None:
        if not rules:
            raise ValueError("checkpoint.retention.rules: empty; name at least one")
        self.rules = dict(rules)

    def keep(self, checkpoints: Sequence[Checkpoint]) -> set[Checkpoint]:
        """The union of what the rules keep of `checkpoints`."""
        return set().union(*(rule.keep(checkpoints) for rule in self.rules.values()))
