"""Metrics for CloudWatch: lines in its embedded metric format, which the CloudWatch agent of the node picks up.

The format: "Specification: Embedded metric format" in Amazon's CloudWatch user guide. Lines need no call and no key.
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

from framework.run.files import append_line

AT_ONCE = 100
"""Metrics that one line may hold."""


class CloudWatch:
    """Metrics under `namespace`, to `file` of the run's folder, which the node's agent is told to collect."""

    def __init__(self, namespace: str = "framework", file: str = "cloudwatch.jsonl") -> None:
        self.namespace = namespace
        self.file = file

    def logger(self, run: str, folder: Path, attempt: int) -> CloudWatchLogger:
        """The logger of attempt `attempt` of the run `run` in `folder`."""
        return CloudWatchLogger(folder / self.file, self.namespace, run, attempt)


class CloudWatchLogger(Logger):
    """Appends what is logged to `path`, with the dimension run; attempt and step are properties to search by. A value
    that is not finite, which JSON has no word for, is left out.
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
        """Nothing: the run's folder holds the resolved recipe."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Append the metrics of optimizer step `step`."""
        finite = [(name, float(value)) for name, value in metrics.items() if math.isfinite(value)]
        for first in range(0, len(finite), AT_ONCE):
            append_line(self.path, json.dumps(self._line(dict(finite[first : first + AT_ONCE]), step)))

    def _line(self, metrics: dict[str, float], step: int | None) -> dict[str, Any]:
        directive = {
            "Namespace": self.namespace,
            "Dimensions": [["run"]],
            "Metrics": [{"Name": name} for name in metrics],
        }
        about = {"Timestamp": round(time.time() * 1000), "CloudWatchMetrics": [directive]}
        return {"_aws": about, "run": self.run, "attempt": self.attempt, "step": step, **metrics}
