"""The rules by which HyperPod's operator monitors a log, made from the heartbeat's format: no start, a hang, slow
steps, a loss that is not finite.

The operator matches each line that local rank 0 of a pod prints with Python's `re.match`. The supervisor of a node
notices the same faults sooner and knows more; these rules guard against a hang of the supervisor itself.
"""

from __future__ import annotations

import re
from dataclasses import MISSING, dataclass, fields
from typing import Any

from framework.recipe.component import component
from framework.recipe.ranges import PositiveCount, WholeSeconds
from framework.run.heartbeat import Heartbeat

NUMBER = r"[0-9.e+-]+"
NOT_FINITE = "-?(?:nan|inf)"


@component
@dataclass(frozen=True, slots=True)
class LogRules:
    """When a pod's log counts as a fault."""

    start_s: WholeSeconds = 3600
    """From the workers' start to the first heartbeat (s); the time includes loading a checkpoint."""
    hang_s: WholeSeconds = 14400
    """From one heartbeat to the next (s); evaluations and saves lie between two."""
    slow_step_s: WholeSeconds | None = None
    """A step that takes longer (s) is slow; None: no step is."""
    slow_points: PositiveCount = 20
    """Consecutive slow steps that make a fault."""


def heartbeat_pattern(**values: str) -> str:
    """Return a pattern, to be matched from a line's start, for heartbeats whose fields named in `values` match those
    patterns. What stands at a heartbeat's end, and not in all, is left open. Raises `TypeError` for a field that not
    all heartbeats have.
    """
    known = [field.name for field in fields(Heartbeat) if field.default is MISSING]
    if unknown := sorted(set(values) - set(known)):
        raise TypeError(f"a heartbeat has no {', '.join(unknown)}; it has {', '.join(known)}")
    return ".*heartbeat " + " ".join(f"{name}={values.get(name, '[^ ]+')}" for name in known)


def monitoring(rules: LogRules) -> list[dict[str, Any]]:
    """Return the `logMonitoringConfiguration` of a HyperPodPyTorchJob."""
    beats = heartbeat_pattern()
    entries: list[dict[str, Any]] = [
        {"name": "start", "logPattern": beats, "expectedStartCutOffInSeconds": rules.start_s},
        {"name": "hang", "logPattern": beats, "expectedRecurringFrequencyInSeconds": rules.hang_s},
        {"name": "not-finite", "logPattern": heartbeat_pattern(loss=NOT_FINITE), "faultOnMatch": True},
    ]
    if rules.slow_step_s is not None:
        slow = {"metricThreshold": rules.slow_step_s, "operator": "gt", "metricEvaluationDataPoints": rules.slow_points}
        entries.append({"name": "slow", "logPattern": heartbeat_pattern(step_s=f"({NUMBER})"), **slow})
    for entry in entries:
        re.compile(entry["logPattern"])
    return entries
