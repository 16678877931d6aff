"""What a stage's training is at, as the ledger of phases has it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import cast

from lightning.pytorch import LightningModule, Trainer

from framework.run.phases import PhaseLedger, read_phases
from framework.tracking.phases import PhaseRecorder


def test_a_stage_loads_waits_compiles_and_trains(tmp_path: Path) -> None:
    progress = SimpleNamespace(global_step=40)
    trainer, module = cast(Trainer, progress), cast(LightningModule, None)
    callback = PhaseRecorder(PhaseLedger(tmp_path, 2, 0, 1))
    callback.setup(trainer, module, "fit")
    callback.on_train_start(trainer, module)
    for index in range(3):
        callback.on_train_batch_start(trainer, module, None, index)
        progress.global_step += 1
        callback.on_train_batch_end(trainer, module, None, None, index)
    assert [(line.phase, line.step) for line in read_phases(tmp_path)[0]] == [
        ("load", None),
        ("first_batch", 40),
        ("compile", 40),
        ("productive", 41),
    ]
