"""Alarms on a step's metrics: they warn, or stop a run that should not go on."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from framework.recipe.component import component
from framework.recipe.ranges import Finite, PositiveCount

log = logging.getLogger(__name__)

MAX_STEPS_UNSEEN = 3
"""After so many steps without a metric, its alarm is taken to name a metric that does not exist."""


class AlarmError(RuntimeError):
    """A metric was out of bounds for too long, and its alarm stops the run."""


@component
@dataclass(frozen=True, kw_only=True)
class Alarm:
    """Fires when a metric is out of bounds, or NaN, for several steps in a row.

    Raises `ValueError` where no bound is given, for less than one step, and for an unknown action.
    """

    metric: str
    """Name of the metric."""
    above: Finite | None = None
    """Upper bound; None for none."""
    below: Finite | None = None
    """Lower bound; None for none."""
    steps: PositiveCount = 1
    """Consecutive steps out of bounds after which the alarm fires."""
    action: Literal["warn", "stop"] = "warn"
    """`warn` logs a warning at every such step, `stop` ends the run."""

    def __post_init__(self) -> None:
        if self.above is None and self.below is None:
            raise ValueError(f"alarm on {self.metric}: no bound; give above, below or both")
        if self.steps < 1 or self.action not in ("warn", "stop"):
            raise ValueError(
                f"alarm on {self.metric}: steps {self.steps}, action {self.action}; give at least one step, and warn "
                "or stop"
            )

    def is_out(self, value: float) -> bool:
        """Whether `value` is out of bounds."""
        inside = (self.above is None or value <= self.above) and (self.below is None or value >= self.below)
        return not inside or value != value


class Alarms:
    """Checks each step's metrics. Counts of consecutive steps start again on a resume.

    Args:
        alarms: The alarms by name.
    """

    def __init__(self, alarms: Mapping[str, Alarm]) -> None:
        self.alarms = dict(alarms)
        self._out_of_bounds: dict[str, int] = {}
        self._steps = 0

    def check(self, step: int, metrics: Mapping[str, float]) -> None:
        """Checks the `metrics` of `step`, which are equal on every rank.

        A step may lack a metric: one that trains surplus groups alone samples nothing. It then neither fires the alarm
        nor resets its count. Raises `AlarmError` for an alarm that stops, and `ValueError` for one whose metric no step
        has had after `MAX_STEPS_UNSEEN` steps: it would never fire.
        """
        self._steps += 1
        for name, alarm in self.alarms.items():
            if alarm.metric not in metrics:
                if name not in self._out_of_bounds and self._steps >= MAX_STEPS_UNSEEN:
                    known = ", ".join(sorted(metrics))
                    raise ValueError(f"alarms.{name}: no step has a metric {alarm.metric}; this one has {known}")
                continue
            value = metrics[alarm.metric]
            self._out_of_bounds[name] = self._out_of_bounds.get(name, 0) + 1 if alarm.is_out(value) else 0
            if self._out_of_bounds[name] < alarm.steps:
                continue
            message = (
                f"alarm {name}, step {step}: {alarm.metric} is {value:.4g}, for {self._out_of_bounds[name]} steps out "
                f"of bounds (above {alarm.above}, below {alarm.below})"
            )
            if alarm.action == "stop":
                raise AlarmError(f"{message}; the newest checkpoint is from before: look at the curves, then resume")
            log.warning(message)
