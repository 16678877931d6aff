"""Times every step, logs how fast it went, and beats the heart."""

from __future__ import annotations

import os
import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from tqdm import tqdm

from framework.run.heartbeat import Heartbeat
from framework.tracking.throughput import Throughput


class Pace(Callback):
    """Times every step: metrics to the loggers every `every` steps, the heartbeat to standard output on each.

    Reads from the training step's outputs: `loss`, `metrics` (name to number), and the step's global counts `tokens`
    (all positions that the model processed, not only those trained) and `samples`. Adds `step_s`, `tokens_per_s` and
    `samples_per_s` to `metrics`; where there are `flops` (by part, of all ranks), what `throughput` makes of them; and,
    when it logs, the most memory since it last did. The clock runs from the end of one step to the end of the next, so
    that waiting for data counts. Loggers are called directly: Lightning's own logging costs milliseconds a step.
    """

    def __init__(self, run: str, attempt: int, stage: str, every: int, throughput: Throughput | None = None) -> None:
        self.run = run
        self.attempt = attempt
        self.stage = stage
        self.every = every
        self.throughput = throughput
        self.beats = int(os.environ.get("LOCAL_RANK", "0")) == 0
        self.last = 0.0
        self.logged = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        if self.throughput is not None:
            self.throughput.start(pl_module.device, trainer.world_size)
        self.last = time.perf_counter()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Begin a window of memory after each that was logged."""
        if self.throughput is not None and self.logged:
            self.throughput.begin_window()
            self.logged = False

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Report the step that ended."""
        now = time.perf_counter()
        seconds, self.last = now - self.last, now
        step, tokens_per_s = trainer.global_step, outputs["tokens"] / seconds
        metrics = outputs["metrics"]
        metrics |= {"step_s": seconds, "tokens_per_s": tokens_per_s, "samples_per_s": outputs["samples"] / seconds}
        if self.throughput is not None and "flops" in outputs:
            metrics |= self.throughput.of_step(outputs["flops"], seconds)
        if step % self.every == 0:
            self._log(trainer, metrics)
        if self.beats:
            beat = Heartbeat(self.run, self.attempt, self.stage, step, float(outputs["loss"]), tokens_per_s, seconds)
            tqdm.write(str(beat))  # through tqdm, which lifts a progress bar out of the line's way

    def _log(self, trainer: Trainer, metrics: dict[str, float]) -> None:
        if self.throughput is not None:
            metrics |= self.throughput.memory()
        for logger in trainer.loggers:
            logger.log_metrics(metrics, trainer.global_step)
        self.logged = True
