"""Detects training that waits for data, and says what to do about it."""

from __future__ import annotations

import logging
import os
from collections import deque
from pathlib import Path
from statistics import fmean
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from framework.data.stream.worker_count import StepTimings, cores_of_rank, save_timings
from framework.run.step_output import StepOutput
from framework.training.datamodule import loader_of

log = logging.getLogger(__name__)

STEPS = 50
"""Steps between judgements, and over which the timings is averaged."""


class DataStall(Callback):
    """Warns with a remedy when a tenth of the time is spent waiting for data.

    Args:
        folder: Run folder. The measured timings is stored there, where `data.workers: auto` reads it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.seen: deque[StepTimings] = deque(maxlen=STEPS)

    def on_train_batch_end(  # type: ignore[override]  # Lightning types `outputs` as any mapping
        self, trainer: Trainer, pl_module: LightningModule, outputs: StepOutput, batch: Any, batch_idx: int
    ) -> None:
        """Measure the step; every `STEPS` steps, judge."""
        metrics = outputs["metrics"]
        wait, fetch, render = (metrics[f"data/{name}_s"] for name in ("wait", "fetch", "render"))
        self.seen.append(StepTimings(max(0.0, metrics["step_s"] - wait), wait, fetch, render))
        if trainer.is_global_zero and (batch_idx + 1) % STEPS == 0:
            timings = StepTimings(*(fmean(values) for values in zip(*map(_numbers, self.seen), strict=True)))
            save_timings(timings, self.folder)
            if timings.is_starved:
                ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
                log.warning("%s", timings.advice(loader_of(trainer).workers, cores_of_rank(ranks) - 1))


def _numbers(timings: StepTimings) -> tuple[float, float, float, float]:
    return timings.step_s, timings.wait_s, timings.fetch_s, timings.render_s
