"""Writes down what a stage's training is at."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from framework.run.phases import Phase, PhaseLedger


class Phases(Callback):
    """Enters the phases of a stage up to its second step into `ledger`: loading, the first batch, the first step. Must
    come before the callback that loads, which tells the ledger of its own saves.
    """

    def __init__(self, ledger: PhaseLedger) -> None:
        self.ledger = ledger
        self.first = True

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """What the stage resumes from is about to be loaded."""
        self.ledger.begin(Phase.LOAD)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Everything is loaded."""
        self.ledger.begin(Phase.FIRST_BATCH, trainer.global_step)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """A batch is here."""
        if self.first:
            self.ledger.begin(Phase.COMPILE, trainer.global_step)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """A step is trained."""
        if self.first:
            self.ledger.begin(Phase.PRODUCTIVE, trainer.global_step)
            self.first = False
