"""A stage of ten steps on the toy model, under Lightning and with the callback that saves."""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from lightning.pytorch import LightningModule, Trainer

from framework.checkpoint.policy import CheckpointPolicy
from framework.checkpoint.retention import KeepLast
from framework.checkpoint.save_modes import Asynchronous, SaveMode
from framework.data.stream.loader import StepLoader
from framework.parallel.mesh import DataRank
from framework.run.phases import PhaseLedger
from framework.training.callbacks.checkpoint import Checkpointing
from framework.training.datamodule import StageData
from framework.training.late_step import LateStep
from framework.training.sft.module import SupervisedModule
from framework.training.stages import Stage, StageRange
from tests.checkpoint.toy import make

END = 10


class Toy(SupervisedModule):
    """Trains the toy model; `events` say what happens at a step: a metric that is no number, or a signal."""

    def __init__(self, events: Mapping[int, str]) -> None:
        LightningModule.__init__(self)
        self.automatic_optimization = False
        self.model, self.toy_optimizer = make(0)  # type: ignore[assignment]
        self.stage_range = StageRange("toy", cast(Stage, None), 0, END)
        self._late = None
        self.events = events
        self.losses: dict[int, float] = {}

    def configure_model(self) -> None:
        """Nothing to distribute; every rank trains samples of its own."""
        self.dp_rank = DataRank(self.trainer.global_rank, self.trainer.world_size)

    def configure_optimizers(self) -> Any:
        """With a schedule."""
        schedule = torch.optim.lr_scheduler.StepLR(self.toy_optimizer, 3, 0.5)
        return {"optimizer": self.toy_optimizer, "lr_scheduler": schedule}

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Nothing to move."""
        return batch

    def training_step(self, batch: int, batch_idx: int) -> dict[str, Any]:
        """A step, on samples that the random generator draws."""
        optimizer, schedule = self.optimizers(), self.lr_schedulers()
        assert not isinstance(optimizer, list)
        assert isinstance(schedule, torch.optim.lr_scheduler.LRScheduler)
        loss = self.model(torch.randn(5, 3)).square().mean()  # type: ignore[operator, arg-type]
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()
        schedule.step()
        step = self.trainer.global_step
        self.losses[step] = loss.item()
        metrics = {"loss": loss.item(), "gradient_norm": 1.0}
        event = self.events.get(step)
        told, _, rank = (event or "").partition(" to ")
        if rank == str(self.trainer.global_rank):
            os.kill(os.getpid(), signal.Signals[told])
        elif event is not None and not rank:
            metrics[event] = math.nan
        output: Any = {"loss": loss.detach(), "metrics": {}}
        before, self._late = self._late, LateStep.of(step, output, torch.zeros(0), lambda read: metrics)
        self._report(before)
        return output


class Counter(StepLoader):
    """Counts steps, as the real one's cursor does."""

    def __init__(self) -> None:
        self.committed = 0

    def __iter__(self) -> Iterator[Any]:
        while True:
            yield 0

    def commit(self, step: int, slices: int = 1) -> None:
        """Of step `step`."""
        self.committed = step

    def state_dict(self) -> dict[str, Any]:
        """The cursor."""
        return {"committed": self.committed}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The cursor."""
        self.committed = state["committed"]

    def close(self) -> None:
        """Nothing to end."""


class Data(StageData):
    """The counter as a stage's data."""

    def __init__(self) -> None:
        nothing = cast(Any, None)
        super().__init__(nothing, nothing, nothing, nothing, stage="toy", samples=END, seed=0, folder=nothing)

    def setup(self, stage: str) -> None:
        """Its loader."""
        self.loader = Counter()


def fit(
    folder: Path,
    events: Mapping[int, str],
    *,
    every: int = 2,
    bad_steps: int = 2,
    roll_backs: int = 0,
    save_mode: SaveMode | None = None,
    **place: Any,
) -> Toy:
    """An attempt, which resumes where the one before stopped; on one rank, or where `place` says."""
    policy = CheckpointPolicy(
        every, KeepLast(99), save_mode or Asynchronous("thread"), bad_steps=bad_steps, roll_backs=roll_backs
    )
    attempt = 1 + len(list((folder / "attempts").glob("*")))
    module = Toy(events)
    with policy.store(folder) as store:
        trainer = Trainer(
            max_steps=END,
            max_epochs=-1,
            **{"accelerator": "cpu", "devices": 1, **place},
            logger=False,
            callbacks=[Checkpointing(store, policy, PhaseLedger(folder, attempt, 0, 1), store.resume(attempt))],
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=False,
        )
        trainer.fit(module, datamodule=Data())
    return module
