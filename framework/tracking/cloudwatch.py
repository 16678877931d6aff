"""Metrics for CloudWatch: lines in its embedded metric format, which the node's CloudWatch agent collects.

The format: "Specification: Embedded metric format" in Amazon's CloudWatch user guide. It needs neither a network call
nor credentials.
"""

from __future__ import annotations

import json
import math
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

from framework.recipe.component import component
from framework.run.files import append_line

METRICS_PER_LINE = 100
"""The format's limit of metrics in one line."""


@component
class CloudWatch:
    """Writes metrics to a file in the run's folder, which the node's agent is configured to collect.

    Args:
        namespace: The namespace of the metrics in CloudWatch.
        file: The file's name in the run's folder.
    """

    def __init__(self, namespace: str = "framework", file: str = "cloudwatch.jsonl") -> None:
        self.namespace = namespace
        self.file = file

    def logger(self, run: str, folder: Path, attempt: int) -> CloudWatchLogger:
        """The logger of an attempt of the run in `folder`."""
        return CloudWatchLogger(folder / self.file, self.namespace, run, attempt)


class CloudWatchLogger(Logger):
    """Appends metrics to `path` with the dimension `run`; `attempt` and `step` are properties to search by. Values that
    are not finite are left out, since JSON cannot express them.
    """

    def __init__(self, path: Path, namespace: str, run: str, attempt: int) -> None:
        super().__init__()
        self.path = path
        self.namespace = namespace
        self.run = run
        self.attempt = attempt

    @property
    def name(self) -> str:
        """The run's name."""
        return self.run

    @property
    def version(self) -> int:
        """The attempt."""
        return self.attempt

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Does nothing: the run's folder has the resolved recipe."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Append the metrics of optimizer step `step`."""
        finite = [(name, float(value)) for name, value in metrics.items() if math.isfinite(value)]
        for first in range(0, len(finite), METRICS_PER_LINE):
            append_line(self.path, json.dumps(self._line(dict(finite[first : first + METRICS_PER_LINE]), step)))

    def _line(self, metrics: dict[str, float], step: int | None) -> dict[str, Any]:
        directive = {
            "Namespace": self.namespace,
            "Dimensions": [["run"]],
            "Metrics": [{"Name": name} for name in metrics],
        }
        about = {"Timestamp": round(time.time() * 1000), "CloudWatchMetrics": [directive]}
        return {"_aws": about, "run": self.run, "attempt": self.attempt, "step": step, **metrics}
