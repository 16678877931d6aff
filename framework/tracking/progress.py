"""The progress bar: loss, tokens/s and time left of the stage."""

from __future__ import annotations

import sys
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar

from framework.run.step_output import StepOutput


class Progress(TQDMProgressBar):
    """Lightning's bar over `max_steps`, since the loader is endless and its own bar would know no end."""

    def __init__(self, stage: str, refresh_rate: int = 1) -> None:
        super().__init__(refresh_rate=refresh_rate)
        self.stage = stage

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the stage and where a resumed run begins."""
        self.train_progress_bar.reset(trainer.max_steps)
        self.train_progress_bar.initial = trainer.global_step
        self.train_progress_bar.n = trainer.global_step
        self.train_progress_bar.set_description(self.stage)

    def on_train_batch_end(  # type: ignore[override]  # Lightning types `outputs` as any mapping
        self, trainer: Trainer, pl_module: LightningModule, outputs: StepOutput, batch: Any, batch_idx: int
    ) -> None:
        """Advance by the optimizer step."""
        bar = self.train_progress_bar
        if not bar.disable and self._should_update(trainer.global_step, trainer.max_steps):
            bar.update(trainer.global_step - bar.n)
            metrics = outputs["metrics"]
            bar.set_postfix({name: f"{metrics[name]:.4g}" for name in ("loss", "tokens_per_s")})

    @property
    def is_disabled(self) -> bool:
        """On other ranks than the first, and where there is no terminal: logs keep the heartbeat."""
        return super().is_disabled or not sys.stdout.isatty()
