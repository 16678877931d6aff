"""When somebody is told, as Prometheus's rules over the metrics of `metric_table`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from string import Template
from typing import Any, Literal

from framework.tracking.metric_table import METRICS

HANG_FLOOR_S = 60
FIRST_STEP_S = 1800
"""A step that comes before any was timed may compile."""


@dataclass(frozen=True)
class Alert:
    """Tells when `condition`, in which `$name` stands for a metric of `METRICS`, has held for `lasts` (as Prometheus
    writes times); `says` is for people.
    """

    name: str
    condition: str
    lasts: str
    severity: Literal["page", "ticket"]
    says: str

    def expression(self) -> str:
        """In PromQL. Raises `KeyError` on a metric that does not exist."""
        return Template(self.condition).substitute({key: metric.name for key, metric in METRICS.items()})


ALERTS = (
    Alert(
        "Hang",
        f"((time() - $heartbeat > {HANG_FLOOR_S} + 3 * quantile_over_time(0.5, $step_seconds[1h])) "
        f"or (time() - $heartbeat > {FIRST_STEP_S})) and $training == 1",
        "1m",
        "page",
        "no step has ended for three times the usual and a minute",
    ),
    Alert(
        "NodeSilent",
        "(last_over_time($training[15m]) == 1) unless $training",
        "3m",
        "page",
        "it trained, and its endpoint has gone without the stage's end: the process or the node is lost",
    ),
    Alert("LossNotFinite", "($loss != $loss) or (abs($loss) == Inf)", "0m", "page", "the loss is no number"),
    Alert(
        "SlowSteps",
        "avg_over_time($step_seconds[10m]) > 1.5 * quantile_over_time(0.5, $step_seconds[6h])",
        "10m",
        "ticket",
        "steps take half as long again as usual",
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
    Alert("EfaResends", "rate($efa_resent[5m]) > 100", "5m", "ticket", "EFA resends over a hundred packets a second"),
    Alert(
        "CheckpointTooOld",
        "(time() - $checkpoint > 7200) and $training == 1",
        "5m",
        "page",
        "a crash now would cost over two hours",
    ),
)


def rules() -> dict[str, Any]:
    """The content of a rule file of Prometheus."""
    return {"groups": [{"name": "framework", "rules": [_rule(alert) for alert in ALERTS]}]}


def _rule(alert: Alert) -> Mapping[str, Any]:
    where = "run {{ $labels.run }}, attempt {{ $labels.attempt }}, node {{ $labels.node }}"
    return {
        "alert": alert.name,
        "expr": alert.expression(),
        "for": alert.lasts,
        "labels": {"severity": alert.severity},
        "annotations": {"summary": f"{where}: {alert.says}", "value": "{{ $value }}"},
    }
