"""Which committed checkpoints stay: components to combine in `checkpoint.retention`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

from framework.checkpoint.history import Checkpoint, Retention
from framework.run.evaluations import Wanted, best_of, figure_of, pending


class KeepLast:
    """Keep the newest `count` checkpoints."""

    def __init__(self, count: int = 3) -> None:
        if count < 1:
            raise ValueError(f"checkpoint.retention: count {count}; keep at least 1")
        self.count = count

    def keep(self, checkpoints: Sequence[Checkpoint]) -> set[Checkpoint]:
        """The newest `count`."""
        return set(sorted(checkpoints)[-self.count :])


class KeepEvery:
    """Keep for ever every checkpoint whose step is a multiple of `steps`."""

    def __init__(self, steps: int) -> None:
        if steps < 1:
            raise ValueError(f"checkpoint.retention: steps {steps}; give at least 1")
        self.steps = steps

    def keep(self, checkpoints: Sequence[Checkpoint]) -> set[Checkpoint]:
        """The multiples of `steps`."""
        return {checkpoint for checkpoint in checkpoints if checkpoint.step % self.steps == 0}


class KeepBest:
    """Keep the `count` checkpoints with the lowest (`mode="min"`) or highest (`"max"`) `metric`.

    A checkpoint's metrics are means over the steps since the checkpoint before it. One without that metric, or where
    it is not finite, is never among the best.
    """

    def __init__(self, metric: str, mode: Literal["min", "max"] = "min", count: int = 1) -> None:
        if count < 1:
            raise ValueError(f"checkpoint.retention: count {count}; keep at least 1")
        self.metric = metric
        self.mode = mode
        self.count = count

    def keep(self, checkpoints: Sequence[Checkpoint]) -> set[Checkpoint]:
        """The best `count`; of equals, the newest."""
        measured = [found for found in sorted(checkpoints) if math.isfinite(found.metrics.get(self.metric, math.nan))]
        sign = 1 if self.mode == "max" else -1
        return set(sorted(measured, key=lambda found: sign * found.metrics[self.metric])[-self.count :])


class KeepForEvaluation:
    """Keep what is still to be evaluated, and of what was evaluated the best, where the run's evaluations are wanted
    (see `framework.run.evaluations`).
    """

    def keep(self, checkpoints: Sequence[Checkpoint]) -> set[Checkpoint]:
        """Those that wait for a result, and the best of those that have one; of equals, the newest."""
        by_step = {checkpoint.step: checkpoint for checkpoint in sorted(checkpoints)}
        runs = {step: found.folder.parents[1] for step, found in by_step.items()}
        kept = {found for step, found in by_step.items() if pending(runs[step], step)}
        figures = {step: value for step, run in runs.items() if (value := figure_of(run, step)) is not None}
        wanted = Wanted.read(next(iter(runs.values()))) if runs else None
        best = best_of(figures, wanted.mode) if wanted is not None else None
        return kept if best is None else kept | {by_step[best]}


class KeepAny:
    """Keep what any of `rules`, by name, keeps."""

    def __init__(self, rules: Mapping[str, Retention]) -> None:
        if not rules:
            raise ValueError("checkpoint.retention.rules: empty; name at least one")
        self.rules = dict(rules)

    def keep(self, checkpoints: Sequence[Checkpoint]) -> set[Checkpoint]:
        """The union."""
        return set().union(*(rule.keep(checkpoints) for rule in self.rules.values()))
