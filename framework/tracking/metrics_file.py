"""Metrics as an append-only CSV file, so that a resumed run continues it and a new metric needs no new header."""

from __future__ import annotations

import csv
import io
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

from framework.run.files import append_text

HEADER = ("step", "attempt", "stage", "name", "value")


class MetricsFile(Logger):
    """Appends rows of `HEADER` to a file. Hyperparameters are not logged: the run's folder has the recipe.

    Args:
        path: The file; created with its header on the first row.
        attempt: The run's attempt.
        stage: The stage's name.
    """

    def __init__(self, path: Path, attempt: int, stage: str) -> None:
        super().__init__()
        self.path = path
        self.attempt = attempt
        self.stage = stage

    @property
    def name(self) -> str:
        """The file's stem."""
        return self.path.stem

    @property
    def version(self) -> int:
        """The attempt."""
        return self.attempt

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Does nothing: the run's folder has the resolved recipe."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Append one row per metric, all in one write."""
        text = io.StringIO(newline="")
        rows = csv.writer(text)
        if not self.path.exists():
            rows.writerow(HEADER)
        rows.writerows((step, self.attempt, self.stage, name, value) for name, value in metrics.items())
        append_text(self.path, text.getvalue())


def read_series(path: Path, name: str) -> list[tuple[int, float]]:
    """The steps and values of metric `name`, in order. For a step that several attempts trained, the latest value."""
    values: dict[int, float] = {}
    for row in _rows(path):
        if row["name"] == name:
            values[int(row["step"])] = float(row["value"])
    return sorted(values.items())


def _rows(path: Path) -> Iterator[dict[str, str]]:
    if path.is_file():
        with path.open(newline="") as stream:
            yield from csv.DictReader(stream)
