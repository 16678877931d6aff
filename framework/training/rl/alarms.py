"""Alarms: metrics of a step that should not go on as they are."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

log = logging.getLogger(__name__)

UNSEEN = 3
"""Steps after which a metric that none of them had is taken to be misspelled."""


class AlarmError(RuntimeError):
    """A metric was out of its bounds for too long, and its alarm is to stop the run."""


@dataclass(frozen=True, kw_only=True)
class Alarm:
    """Rings when `metric` is above `above` or below `below` (None: no such bound), or not a number, for `steps` steps
    in a row; then `action` is taken: warn, at every such step, or stop.
    """

    metric: str
    above: float | None = None
    below: float | None = None
    steps: int = 1
    action: Literal["warn", "stop"] = "warn"

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
    """Looks at each step's metrics. `alarms` by name. How long each has been out of bounds begins anew on a resume."""

    def __init__(self, alarms: Mapping[str, Alarm]) -> None:
        self.alarms = dict(alarms)
        self._running: dict[str, int] = {}
        self._looked = 0

    def look(self, step: int, metrics: Mapping[str, float]) -> None:
        """Look at the `metrics` of `step`, the same on every rank. Raises `AlarmError` for an alarm that stops, and
        `ValueError` for one whose metric no step so far had, after `UNSEEN` of them: it would never ring. A step that
        trains what was left over has no metrics of sampling, and says nothing of those.
        """
        self._looked += 1
        for name, alarm in self.alarms.items():
            if alarm.metric not in metrics:
                if name not in self._running and self._looked >= UNSEEN:
                    known = ", ".join(sorted(metrics))
                    raise ValueError(f"alarms.{name}: no step has a metric {alarm.metric}; this one has {known}")
                continue
            value = metrics[alarm.metric]
            self._running[name] = self._running.get(name, 0) + 1 if alarm.is_out(value) else 0
            if self._running[name] < alarm.steps:
                continue
            message = (
                f"alarm {name}, step {step}: {alarm.metric} is {value:.4g}, for {self._running[name]} steps out of "
                f"bounds (above {alarm.above}, below {alarm.below})"
            )
            if alarm.action == "stop":
                raise AlarmError(f"{message}; the newest checkpoint is from before: look at the curves, then resume")
            log.warning(message)
