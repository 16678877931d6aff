"""What watches a run: loggers and callbacks of one stage of one attempt."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lightning.pytorch import Callback
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.profilers import Profiler

from framework.run.layout import METRICS_FILE, PROFILES
from framework.tracking.cloudwatch import CloudWatch
from framework.tracking.comet import Comet
from framework.tracking.metrics_file import MetricsFile
from framework.tracking.profile import Profile
from framework.tracking.progress import Progress
from framework.tracking.step_logger import StepLogger
from framework.tracking.step_meter import StepMeter
from framework.tracking.throughput import Throughput

if TYPE_CHECKING:  # it needs the extra `observe`
    from framework.tracking.prometheus import Prometheus


@dataclass(frozen=True)
class Tracking:
    """Metrics to the run's CSV file and, where they are given, to its `comet` experiment and to `cloudwatch`, every
    `every` steps; a heartbeat, and the endpoint for `prometheus`, on each; and what `profile` asks for.
    """

    comet: Comet | None = None
    every: int = 1
    profile: Profile | None = None
    prometheus: Prometheus | None = None
    cloudwatch: CloudWatch | None = None

    def loggers(self, run: str, folder: Path, attempt: int, stage: str) -> list[Logger]:
        """The loggers of a stage."""
        loggers: list[Logger] = [MetricsFile(folder / METRICS_FILE, attempt, stage)]
        if self.comet is not None:
            loggers.append(self.comet.logger(run, folder, attempt))
        if self.cloudwatch is not None:
            loggers.append(self.cloudwatch.logger(run, folder, attempt))
        return loggers

    def callbacks(
        self, run: str, attempt: int, stage: str, precision: str = "32-true", folder: Path | None = None
    ) -> list[Callback]:
        """Pace, heartbeat and progress bar of a stage, which computes in `precision` (as Lightning spells it); what had
        to be measured of the device is kept in `folder`.
        """
        callbacks: list[Callback] = [
            StepLogger(run, attempt, stage, StepMeter(self.every, Throughput(precision, folder))),
            Progress(stage),
        ]
        reporter = self.prometheus.callback(run, attempt, folder) if self.prometheus and folder else None
        return callbacks if reporter is None else [*callbacks, reporter]

    def profiler(self, folder: Path, attempt: int, stage: str) -> Profiler | None:
        """What Lightning's Trainer takes to profile a stage of the run in `folder`; None: nothing is profiled."""
        return None if self.profile is None else self.profile.profiler(folder / PROFILES, stage, attempt)
