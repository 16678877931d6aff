"""Sends the metrics of each step to the loggers, and the heartbeat to standard output."""

from __future__ import annotations

import os
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers.logger import Logger

from framework.run.console import on_terminal
from framework.run.heartbeat import Heartbeat
from framework.run.step_output import REWARD, StepOutput
from framework.tracking.step_meter import StepMeter


class StepLogger(Callback):
    """Logs a stage's steps: metrics to the loggers as often as `meter` says, the heartbeat on every step (contract 5).

    It hands `meter` to the training module, which measures its own steps with it. A step is logged when its metrics
    have been read, one step late. Loggers are called directly, since Lightning's own logging costs milliseconds a step.

    Args:
        run: The run's name.
        attempt: The run's attempt.
        stage: The stage's name.
        meter: Measures the steps.
        heartbeat: Whether the heartbeat is printed on a terminal too, which has a progress bar.
    """

    def __init__(self, run: str, attempt: int, stage: str, meter: StepMeter, heartbeat: bool = False) -> None:
        self.run = run
        self.attempt = attempt
        self.stage = stage
        self.meter = meter
        self.writes_heartbeat = int(os.environ.get("LOCAL_RANK", "0")) == 0
        self.writes_heartbeat &= heartbeat or not on_terminal()
        self.loggers: list[Logger] = []

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Have the module measure its steps."""
        pl_module.step_meter = self.meter  # type: ignore[assignment]  # Lightning takes attributes for tensors

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self.meter.start(pl_module.device, trainer.world_size)
        self.loggers = trainer.loggers

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Begin the step."""
        self.meter.start_step()

    def on_step_read(self, step: int, output: StepOutput) -> None:
        """Report the step."""
        metrics = output["metrics"]
        if self.meter.is_logged(step):
            for logger in self.loggers:
                logger.log_metrics(metrics, step)
        if self.writes_heartbeat:
            loss, tokens_per_s, step_s = metrics["loss"], metrics["tokens_per_s"], metrics["step_s"]
            reward = metrics.get(REWARD)
            heartbeat = Heartbeat(self.run, self.attempt, self.stage, step, loss, tokens_per_s, step_s, reward)
            print(heartbeat, flush=True)
