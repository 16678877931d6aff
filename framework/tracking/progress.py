"""The progress bar of a stage: loss, tokens/s and time left."""

from __future__ import annotations

import sys
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar

from framework.run.step_output import StepOutput


class StepProgressBar(TQDMProgressBar):
    """Lightning's bar over the stage's steps: over the loader, which is endless, it would show no end.

    Args:
        stage: The stage's name, shown in front of the bar.
        refresh_rate: Optimizer steps between two updates of the bar.
    """

    def __init__(self, stage: str, refresh_rate: int = 1) -> None:
        super().__init__(refresh_rate=refresh_rate)
        self.stage = stage

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the stage's name, and start at the step of a resumed run."""
        self.train_progress_bar.reset(trainer.max_steps)
        self.train_progress_bar.initial = trainer.global_step
        self.train_progress_bar.n = trainer.global_step
        self.train_progress_bar.set_description(self.stage)

    def on_train_batch_end(  # type: ignore[override]  # Lightning types `outputs` as any mapping
        self, trainer: Trainer, pl_module: LightningModule, outputs: StepOutput, batch: Any, batch_idx: int
    ) -> None:
        """Advance to the optimizer step."""
        bar = self.train_progress_bar
        if not bar.disable and self._should_update(trainer.global_step, trainer.max_steps):
            bar.update(trainer.global_step - bar.n)
            metrics = outputs["metrics"]
            bar.set_postfix({name: f"{metrics[name]:.4g}" for name in ("loss", "tokens_per_s")})

    @property
    def is_disabled(self) -> bool:
        """True except on rank 0 with a terminal. Logs have the heartbeat instead."""
        return super().is_disabled or not sys.stdout.isatty()
