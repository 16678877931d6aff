"""Times every step, logs how fast it went, and beats the heart."""

from __future__ import annotations

import os
import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from tqdm import tqdm

from framework.tracking.heartbeat import Heartbeat


class Pace(Callback):
    """Times every step: metrics to the loggers every `every` steps, the heartbeat to standard output on each.

    Reads from the training step's outputs: `loss`, `metrics` (name to number), and the step's global counts `tokens`
    (all positions that the model processed, not only those trained) and `samples`. Adds `step_s`, `tokens_per_s` and
    `samples_per_s` to `metrics`. The clock runs from the end of one step to the end of the next, so that waiting for
    data counts. Loggers are called directly: Lightning's own logging costs milliseconds a step.
    """

    def __init__(self, run: str, attempt: int, stage: str, every: int) -> None:
        self.run = run
        self.attempt = attempt
        self.stage = stage
        self.every = every
        self.beats = int(os.environ.get("LOCAL_RANK", "0")) == 0
        self.last = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self.last = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Report the step that ended."""
        now = time.perf_counter()
        seconds, self.last = now - self.last, now
        step, tokens_per_s = trainer.global_step, outputs["tokens"] / seconds
        pace = {"step_s": seconds, "tokens_per_s": tokens_per_s, "samples_per_s": outputs["samples"] / seconds}
        outputs["metrics"].update(pace)
        if step % self.every == 0:
            for logger in trainer.loggers:
                logger.log_metrics(outputs["metrics"], step)
        if self.beats:
            beat = Heartbeat(self.run, self.attempt, self.stage, step, float(outputs["loss"]), tokens_per_s, seconds)
            tqdm.write(str(beat))  # through tqdm, which lifts a progress bar out of the line's way
