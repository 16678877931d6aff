"""The rules by which HyperPod's operator watches a log, made from the heartbeat's format: start, hang, slow, no number.

The operator matches each line that local rank 0 of a pod prints with Python's `re.match`. The supervisor of a node
notices the same faults sooner and knows more; these rules see to it that it does not hang itself.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from typing import Any

from framework.run.heartbeat import Heartbeat

NUMBER = r"[0-9.e+-]+"
NOT_FINITE = "-?(?:nan|inf)"


@dataclass(frozen=True, slots=True)
class LogRules:
    """When a log tells of a fault: no heartbeat for `start_s` seconds from the workers' start, which loads a
    checkpoint, too; none for `hang_s` seconds between two, where evals and saves lie; `slow_points` steps in a
    row of more than `slow_step_s` seconds (None: no step is too slow).
    """

    start_s: int = 3600
    hang_s: int = 14400
    slow_step_s: int | None = None
    slow_points: int = 20


def heartbeat_pattern(**values: str) -> str:
    """A pattern, matched from a line's start, for heartbeats whose fields named in `values` match those patterns.
    Raises `TypeError` for a field that a heartbeat has not.
    """
    known = [field.name for field in fields(Heartbeat)]
    if unknown := sorted(set(values) - set(known)):
        raise TypeError(f"a heartbeat has no {', '.join(unknown)}; it has {', '.join(known)}")
    return ".*heartbeat " + " ".join(f"{name}={values.get(name, '[^ ]+')}" for name in known)


def monitoring(rules: LogRules) -> list[dict[str, Any]]:
    """`logMonitoringConfiguration` of a HyperPodPyTorchJob."""
    beats = heartbeat_pattern()
    found: list[dict[str, Any]] = [
        {"name": "start", "logPattern": beats, "expectedStartCutOffInSeconds": rules.start_s},
        {"name": "hang", "logPattern": beats, "expectedRecurringFrequencyInSeconds": rules.hang_s},
        {"name": "not-finite", "logPattern": heartbeat_pattern(loss=NOT_FINITE), "faultOnMatch": True},
    ]
    if rules.slow_step_s is not None:
        slow = {"metricThreshold": rules.slow_step_s, "operator": "gt", "metricEvaluationDataPoints": rules.slow_points}
        found.append({"name": "slow", "logPattern": heartbeat_pattern(step_s=f"({NUMBER})"), **slow})
    for rule in found:
        re.compile(rule["logPattern"])
    return found
