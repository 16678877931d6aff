"""Saves and resumes a stage at step boundaries, so that a resumed run cannot be told from an undisturbed one."""

from __future__ import annotations

import logging
from typing import Any

import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer

from framework.checkpoint.policy import CheckpointPolicy
from framework.checkpoint.randomness import random_state, restore_random_state
from framework.checkpoint.store import Checkpoint, CheckpointStore
from framework.training.module import SupervisedModule
from framework.training.stage_data import loader_of

log = logging.getLogger(__name__)


class Checkpointing(Callback):
    """Commits the loader's cursor after each step, saves by `policy`, and resumes from `resume` when the stage begins.

    Saves also when Lightning was told to terminate (SIGTERM), at the step's boundary: never inside a signal handler.
    """

    def __init__(
        self,
        store: CheckpointStore,
        policy: CheckpointPolicy,
        attempt: int,
        resume: Checkpoint | None,
    ) -> None:
        self.store = store
        self.policy = policy
        self.attempt = attempt
        self.resume = resume

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore model, optimizer, schedule, cursor, step and random generators; or begin at the stage's start."""
        assert isinstance(pl_module, SupervisedModule)
        span = pl_module.span
        step = span.start
        if self.resume is not None:
            step = self.resume.step
            state, rank_state = self.resume.state(), self.resume.rank_state(_rank())
            self.store.load(self.resume, pl_module.model, trainer.optimizers[0])
            trainer.lr_scheduler_configs[0].scheduler.load_state_dict(state["schedule"])
            loader_of(trainer).load_state_dict(state["cursor"])
            if rank_state is not None:
                restore_random_state(rank_state["random"])
            log.info("resumed stage %s at step %d from %s", span.name, step, self.resume.folder)
        # Lightning counts optimizer steps here, for global_step and max_steps; there is no public way to set it.
        progress = trainer.fit_loop.epoch_loop.manual_optimization.optim_step_progress
        progress.total.ready = progress.total.completed = step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """The step is trained: count it, and save when it is time."""
        assert isinstance(pl_module, SupervisedModule)
        step = trainer.global_step
        loader_of(trainer).commit(step)
        due = step % self.policy.every == 0 or step == pl_module.span.end
        if due or trainer.received_sigterm:
            self._save(trainer, pl_module, step)

    def _save(self, trainer: Trainer, module: SupervisedModule, step: int) -> None:
        optimizer, schedule = trainer.optimizers[0], trainer.lr_scheduler_configs[0].scheduler
        state = {
            "stage": module.span.name,
            "schedule": schedule.state_dict(),
            "cursor": loader_of(trainer).state_dict(),
            "world_size": trainer.world_size,
        }
        self.store.save(step, self.attempt, module.model, optimizer, state, {"random": random_state()})


def _rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0
