"""Metrics as an append-only CSV file, so that a resumed run continues it and a new metric needs no new header."""

from __future__ import annotations

import csv
import io
from argparse import Namespace
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

from framework.run.files import append_text, read_lines, write_text

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
        header = _as_csv([HEADER])
        if not self.path.exists() or self.path.stat().st_size < len(header):  # a crash may have cut it
            write_text(self.path, header)
        append_text(self.path, _as_csv((step, self.attempt, self.stage, *metric) for metric in metrics.items()))


Series = list[tuple[int, float]]
"""Steps and values of a metric, in order."""


def read_series(path: Path, name: str) -> Series:
    """The steps and values of metric `name`; see `read_all_series`."""
    return read_all_series(path, lambda metric: metric == name).get(name, [])


def read_all_series(path: Path, wanted: Callable[[str], bool]) -> dict[str, Series]:
    """The steps and values of each metric whose name is `wanted`, the metrics in the order of the file. For a step that
    several attempts trained, the latest value.
    """
    values: dict[str, dict[int, float]] = {}
    for row in csv.reader(read_lines(path)):
        if len(row) == len(HEADER) and wanted(row[3]):
            with suppress(ValueError):  # a damaged row
                values.setdefault(row[3], {})[int(row[0])] = float(row[4])
    return {name: sorted(points.items()) for name, points in values.items()}


def _as_csv(rows: Iterable[Sequence[Any]]) -> str:
    text = io.StringIO(newline="")
    csv.writer(text).writerows(rows)
    return text.getvalue()
