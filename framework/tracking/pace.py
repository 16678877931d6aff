"""Times every step, logs how fast it went, and beats the heart."""

from __future__ import annotations

import os
import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from tqdm import tqdm

from framework.tracking.heartbeat import Heartbeat


class Pace(Callback):
    """Step time, tokens/s and samples/s to the loggers and the progress bar; the heartbeat to standard output.

    Reads from the training step's outputs: `loss` (scalar), and the step's global counts `tokens` (all positions that
    the model processed, not only those trained) and `samples`. The clock runs from the end of one step to the end of
    the next, so that waiting for data counts.
    """

    def __init__(self, run: str, attempt: int, stage: str) -> None:
        self.run = run
        self.attempt = attempt
        self.stage = stage
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
        tokens_per_s, samples_per_s = outputs["tokens"] / seconds, outputs["samples"] / seconds
        pl_module.log("tokens_per_s", tokens_per_s, prog_bar=True)
        pl_module.log_dict({"step_s": seconds, "samples_per_s": samples_per_s})
        if self.beats:
            beat = Heartbeat(
                self.run, self.attempt, self.stage, trainer.global_step, float(outputs["loss"]), tokens_per_s, seconds
            )
            tqdm.write(str(beat))  # through tqdm, which lifts a progress bar out of the line's way
