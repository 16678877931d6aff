"""What watches a run: loggers and callbacks of one stage of one attempt."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lightning.pytorch import Callback
from lightning.pytorch.loggers.logger import Logger

from framework.tracking.comet import Comet
from framework.tracking.metrics_file import MetricsFile
from framework.tracking.pace import Pace
from framework.tracking.progress import Progress

METRICS_FILE = "metrics.csv"


@dataclass(frozen=True)
class Tracking:
    """Metrics to the run's CSV file and, where `comet` is given, to its Comet experiment, every `every` steps; a
    heartbeat on each.
    """

    comet: Comet | None = None
    every: int = 1

    def loggers(self, run: str, folder: Path, attempt: int, stage: str) -> list[Logger]:
        """The loggers of a stage."""
        loggers: list[Logger] = [MetricsFile(folder / METRICS_FILE, attempt, stage)]
        if self.comet is not None:
            loggers.append(self.comet.logger(run, folder, attempt))
        return loggers

    def callbacks(self, run: str, attempt: int, stage: str) -> list[Callback]:
        """Pace, heartbeat and progress bar of a stage."""
        return [Pace(run, attempt, stage, self.every), Progress(stage)]
