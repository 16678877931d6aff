"""Records the phases of a stage's training."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from framework.run.phases import Phase, PhaseLedger


class PhaseRecorder(Callback):
    """Records the phases of a stage up to its second step: loading, the first batch, the first step. Later phases are
    recorded by whoever causes them, such as saves.

    Args:
        ledger: The node's ledger of phases.
    """

    def __init__(self, ledger: PhaseLedger) -> None:
        self.ledger = ledger
        self.first = True

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """The stage is set up. It is loaded in `on_fit_start`, which comes after `setup` of all callbacks."""
        self.ledger.begin(Phase.LOAD)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Loading is done; the first batch is awaited."""
        self.ledger.begin(Phase.FIRST_BATCH, trainer.global_step)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """The first batch has arrived."""
        if self.first:
            self.ledger.begin(Phase.COMPILE, trainer.global_step)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """The first step is trained."""
        if self.first:
            self.ledger.begin(Phase.PRODUCTIVE, trainer.global_step)
            self.first = False
