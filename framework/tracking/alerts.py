"""Alerts, as Prometheus rules over the metrics of `metric_table`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from string import Template
from typing import Any, Literal

from framework.tracking.metric_table import METRICS

HANG_FLOOR_S = 60
"""Seconds that a step may exceed three times the median without counting as hung."""
FIRST_STEP_S = 1800
"""The longest first step (s), before any was timed: it may compile."""


@dataclass(frozen=True)
class Alert:
    """An alert rule."""

    name: str
    """The alert's name."""
    condition: str
    """The condition in PromQL, in which `$key` stands for the metric of that key in `METRICS`."""
    duration: str
    """How long the condition must hold before the alert fires, in Prometheus's notation."""
    severity: Literal["page", "ticket"]
    """Whether somebody is paged at once or reads a ticket."""
    summary: str
    """What is wrong, for people."""

    def expression(self) -> str:
        """The condition in PromQL. Raises `KeyError` on a metric that does not exist."""
        return Template(self.condition).substitute({key: metric.name for key, metric in METRICS.items()})


ALERTS = (
    Alert(
        "Hang",
        f"((time() - $heartbeat > {HANG_FLOOR_S} + 3 * quantile_over_time(0.5, $step_seconds[1h])) "
        f"or (time() - $heartbeat > {FIRST_STEP_S})) and $training == 1",
        "1m",
        "page",
        "no step has ended for three times the median step and a minute",
    ),
    Alert(
        "NodeSilent",
        "(last_over_time($training[15m]) == 1) unless $training",
        "3m",
        "page",
        "the endpoint of a node that trained is gone: its process or the node is lost",
    ),
    Alert("LossNotFinite", "($loss != $loss) or (abs($loss) == Inf)", "0m", "page", "the loss is not finite"),
    Alert(
        "SlowSteps",
        "avg_over_time($step_seconds[10m]) > 1.5 * quantile_over_time(0.5, $step_seconds[6h])",
        "10m",
        "ticket",
        "steps take 1.5 times the median",
    ),
    Alert(
        "WaitsForData",
        "avg_over_time($wait_seconds[10m]) > 0.2 * avg_over_time($step_seconds[10m])",
        "10m",
        "ticket",
        "a fifth of the time is spent waiting for data",
    ),
    Alert(
        "UtilisationDropped",
        "(avg_over_time($gpu_utilisation[10m]) < 0.5) and on (run, attempt, node) ($training == 1)",
        "5m",
        "ticket",
        "a GPU is idle half of the time while the run trains",
    ),
    Alert("Xid", "$gpu_xid > 0", "0m", "page", "the driver reports an XID error"),
    Alert("EfaResends", "rate($efa_resent[5m]) > 100", "5m", "ticket", "EFA retransmits over 100 packets per second"),
    Alert(
        "CheckpointTooOld",
        "(time() - $checkpoint > 7200) and $training == 1",
        "5m",
        "page",
        "a crash now would lose over two hours of training",
    ),
)


def rules() -> dict[str, Any]:
    """The content of a Prometheus rule file."""
    return {"groups": [{"name": "framework", "rules": [_rule(alert) for alert in ALERTS]}]}


def _rule(alert: Alert) -> Mapping[str, Any]:
    where = "run {{ $labels.run }}, attempt {{ $labels.attempt }}, node {{ $labels.node }}"
    return {
        "alert": alert.name,
        "expr": alert.expression(),
        "for": alert.duration,
        "labels": {"severity": alert.severity},
        "annotations": {"summary": f"{where}: {alert.summary}", "value": "{{ $value }}"},
    }
