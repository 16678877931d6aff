"""Detects training that waits for data, and says what to do about it."""

from __future__ import annotations

import logging
import os
from collections import deque
from pathlib import Path
from statistics import fmean
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from framework.data.stream.worker_count import Pace, cores_of_rank, save_pace
from framework.run.step_output import StepOutput
from framework.training.datamodule import loader_of

log = logging.getLogger(__name__)

STEPS = 50
"""Steps between judgements, and over which the pace is averaged."""


class DataStall(Callback):
    """Warns with a remedy when a tenth of the time is spent waiting for data.

    Args:
        folder: Run folder. The measured pace is stored there, where `data.workers: auto` reads it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.seen: deque[Pace] = deque(maxlen=STEPS)

    def on_train_batch_end(  # type: ignore[override]  # Lightning types `outputs` as any mapping
        self, trainer: Trainer, pl_module: LightningModule, outputs: StepOutput, batch: Any, batch_idx: int
    ) -> None:
        """Measure the step; every `STEPS` steps, judge."""
        metrics = outputs["metrics"]
        wait, fetch, render = (metrics[f"data/{name}_s"] for name in ("wait", "fetch", "render"))
        self.seen.append(Pace(max(0.0, metrics["step_s"] - wait), wait, fetch, render))
        if trainer.is_global_zero and (batch_idx + 1) % STEPS == 0:
            pace = Pace(*(fmean(values) for values in zip(*map(_numbers, self.seen), strict=True)))
            save_pace(pace, self.folder)
            if pace.starves:
                ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
                log.warning("%s", pace.advice(loader_of(trainer).workers, cores_of_rank(ranks) - 1))


def _numbers(pace: Pace) -> tuple[float, float, float, float]:
    return pace.step_s, pace.wait_s, pace.fetch_s, pace.render_s
