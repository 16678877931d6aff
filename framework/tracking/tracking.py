"""The loggers, callbacks and profiler of one stage of one attempt."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lightning.pytorch import Callback
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.profilers import Profiler

from framework.recipe.component import component
from framework.recipe.ranges import PositiveCount
from framework.run.layout import METRICS_FILE, PROFILES
from framework.tracking.cloudwatch import CloudWatch
from framework.tracking.comet import Comet
from framework.tracking.metrics_file import MetricsFile
from framework.tracking.profile import Profile
from framework.tracking.progress import StepProgressBar
from framework.tracking.step_logger import StepLogger
from framework.tracking.step_meter import StepMeter
from framework.tracking.throughput import Throughput

if TYPE_CHECKING:  # it needs the extra `observe`
    from framework.tracking.prometheus import Prometheus


@component
@dataclass(frozen=True)
class Tracking:
    """What a run reports. Metrics always go to the run's CSV file, the heartbeat to standard output on every step."""

    comet: Comet | None = None
    """The run's Comet experiment; None for none."""
    every: PositiveCount = 1
    """Optimizer steps between two whose metrics are logged."""
    profile: Profile | None = None
    """The steps to profile; None for none."""
    prometheus: Prometheus | None = None
    """The endpoint of each node; None for none."""
    cloudwatch: CloudWatch | None = None
    """Metrics for CloudWatch; None for none."""
    heartbeat: bool = False
    """Whether the heartbeat is printed on a terminal too, which has a progress bar. A log always gets it."""

    def loggers(self, run: str, folder: Path, attempt: int, stage: str) -> list[Logger]:
        """The loggers of a stage."""
        loggers: list[Logger] = [MetricsFile(folder / METRICS_FILE, attempt, stage)]
        if self.comet is not None:
            loggers.append(self.comet.logger(run, folder, attempt))
        if self.cloudwatch is not None:
            loggers.append(self.cloudwatch.logger(run, folder, attempt))
        return loggers

    def callbacks(
        self,
        run: str,
        attempt: int,
        stage: str,
        precision: str = "32-true",
        folder: Path | None = None,
        start: int = 0,
    ) -> list[Callback]:
        """The callbacks of a stage, in any order: step logger, progress bar and Prometheus reporter.

        `precision` is the stage's, in Lightning's spelling. A device's peak that has to be measured is stored in
        `folder`, the run's; without a folder there is no Prometheus endpoint either. `start` counts the
        steps before the stage.
        """
        callbacks: list[Callback] = [
            StepLogger(run, attempt, stage, StepMeter(self.every, Throughput(precision, folder)), self.heartbeat),
            StepProgressBar(stage, start),
        ]
        reporter = self.prometheus.callback(run, attempt, folder) if self.prometheus and folder else None
        return callbacks if reporter is None else [*callbacks, reporter]

    def profiler(self, folder: Path, attempt: int, stage: str) -> Profiler | None:
        """The profiler for Lightning's Trainer, of a stage of the run in `folder`; None where nothing is profiled."""
        return None if self.profile is None else self.profile.profiler(folder / PROFILES, stage, attempt)
