"""Saves and resumes a stage at step boundaries. A resumed run is indistinguishable from an uninterrupted one."""

from __future__ import annotations

import logging
import signal
import threading
from collections import defaultdict
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import SIGTERMException

from framework.checkpoint.manifest import CheckpointError
from framework.checkpoint.policy import CheckpointPolicy
from framework.checkpoint.randomness import random_state, restore_random_state
from framework.checkpoint.store import Checkpoint, CheckpointStore
from framework.parallel.collectives import max_over_ranks
from framework.parallel.mesh import DataRank
from framework.parallel.sharding import reshard
from framework.run.phases import Phase, PhaseLedger
from framework.run.step_output import StepOutput
from framework.training.callbacks.nonfinite import NonfiniteGuard
from framework.training.datamodule import loader_of
from framework.training.stage_module import StageModule
from framework.training.stages import resume_schedule

log = logging.getLogger(__name__)

TERMINATION_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
"""Sent by schedulers: SIGTERM to end now, SIGUSR1 some time before the job's time limit."""
LAST_SAVE_S = 60.0
"""Seconds that a run that fails waits for the save in flight."""


class Checkpointing(Callback):
    """Commits the loader's cursor after each step, saves by `policy`, and resumes from `resume` when the stage starts.

    It also saves when the run is asked to terminate (SIGTERM, or SIGUSR1 before a job's time limit): at the step
    boundary, never inside a signal handler, and the run ends only once that save is committed. A non-finite step is not
    saved; the save waits for the next finite step. After too many consecutive non-finite steps the stage rolls back to
    the newest checkpoint's weights and continues with the next samples, as often as `policy` allows. `CheckpointError`
    ends the run when no rollback is left, when the stage's last step is not finite, or when a save failed.

    Whether a step was finite is known a step late (see `StageModule`). A step that is to be saved, and one that follows
    a non-finite step, is read at once, as is every step where `bad_steps` is 0: so no step is saved that was not
    judged, and a stage rolls back at the same step as if every step were read.

    Args:
        store: The run's checkpoints.
        policy: When to save, and how many non-finite steps and rollbacks are tolerated.
        phases: Ledger that books the time of saves; it knows the attempt.
        resume: Checkpoint to resume from; None starts the stage from its first step.
    """

    def __init__(
        self,
        store: CheckpointStore,
        policy: CheckpointPolicy,
        phases: PhaseLedger,
        resume: Checkpoint | None,
    ) -> None:
        self.store = store
        self.policy = policy
        self.phases = phases
        self.resume = resume
        self.termination = Termination()
        self.guard = NonfiniteGuard(policy.bad_steps)
        self._due = False
        self._rollbacks: list[int] = []
        self._rolled_back_to: int | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore model, optimizer, schedule, cursor, step and random generators, or start at the first step."""
        assert isinstance(pl_module, StageModule)
        stage_range = pl_module.stage_range
        step = stage_range.start
        self._check_same_checkpoint(trainer)
        self.store.start()
        state = {} if self.resume is None else self.resume.state()
        if self.resume is not None:
            pl_module.load_states(state.get("module", {}), self._inherited_rank_state(pl_module.dp_rank, state))
        pl_module.start_stage(lambda name: CheckpointStore(self.store.folder.parent / name), self.resume is not None)
        if self.resume is not None:
            step = self.resume.step
            rank_state = self.resume.rank_state(_rank())
            self._rollbacks = state.get("went_back", [])
            self.store.load(self.resume, pl_module.model, trainer.optimizers[0])
            resume_schedule(trainer.lr_scheduler_configs[0].scheduler, state["schedule"])
            loader_of(trainer).load_state_dict(state["cursor"])
            if rank_state is not None:
                restore_random_state(rank_state["random"])
            log.info("resumed stage %s at step %d from %s", stage_range.name, step, self.resume.folder)
        # Lightning counts optimizer steps here, for global_step and max_steps; no public API sets them.
        progress = trainer.fit_loop.epoch_loop.manual_optimization.optim_step_progress
        progress.total.ready = progress.total.completed = step

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Replace Lightning's signal handlers, which are installed by now, and its question to the first rank before
        every step: it goes through the device, for which the host would wait.
        """
        self.termination.watch()
        trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]

    def on_train_batch_end(  # type: ignore[override]  # Lightning types `outputs` as any mapping
        self, trainer: Trainer, pl_module: LightningModule, outputs: StepOutput, batch: Any, batch_idx: int
    ) -> None:
        """Commit the cursor, and save when a save is due."""
        assert isinstance(pl_module, StageModule)
        step = trainer.global_step
        loader_of(trainer).commit(step, outputs.get("slices", 1))
        self.store.poll()
        requested = self.termination.requested or trainer.received_sigterm
        terminate = bool(max_over_ranks(int(requested), torch.device("cpu"), dist.group.WORLD))
        ends = step == pl_module.stage_range.end
        self._due |= step % self.policy.every == 0 or ends
        if self._due or terminate or not self.guard.finite or not self.policy.bad_steps:
            pl_module.read_steps()
        if self.guard.lost:
            self._roll_back(trainer, pl_module, step)
        if self.guard.finite and (self._due or terminate):
            with self.phases.during(Phase.CHECKPOINT, step):
                self._save(trainer, pl_module, step)
                while (ends or terminate) and not self.store.finish():
                    self._save(trainer, pl_module, step)
        elif ends:
            raise CheckpointError(
                f"stage {pl_module.stage_range.name} ends, but step {step} is {self.guard.reason}; not saved"
            )
        if terminate:
            raise SIGTERMException

    def on_step_read(self, step: int, output: StepOutput) -> None:
        """Judge whether the step was finite."""
        self.guard.add(step, output["metrics"])
        if self.guard.finite:
            self._rolled_back_to = None

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore the signal handlers; the stage's last checkpoint is committed."""
        self.termination.end()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Let the save in flight finish: it is good, whatever ended the run."""
        self.termination.end()
        try:
            self.store.finish(within_s=LAST_SAVE_S)
        except CheckpointError as error:
            log.warning("%s", error)

    def _save(self, trainer: Trainer, module: StageModule, step: int) -> None:
        optimizer, schedule = trainer.optimizers[0], trainer.lr_scheduler_configs[0].scheduler
        state = {
            "stage": module.stage_range.name,
            "stage_start": module.stage_range.start,
            "schedule": schedule.state_dict(),
            "cursor": loader_of(trainer).state_dict(),
            "world_size": trainer.world_size,
            "data_world": module.dp_rank.world,
            "metrics": self.guard.pop_means(),
            "went_back": self._rollbacks,
            "module": module.state(),
        }
        rank_state = {"random": random_state(), "module": module.rank_state()}
        self.store.save(step, self.phases.attempt, module.model, optimizer, state, rank_state)
        self._due = False

    def _roll_back(self, trainer: Trainer, module: StageModule, step: int) -> None:
        """Load the newest checkpoint's weights and optimizer; the step counter and the schedule go on.

        The rolled-back state is due to be saved as that of `step`, so that no attempt meets the same samples again.
        When no step has been finite since the last rollback, an older checkpoint is loaded.
        """
        tolerated, times = self.policy.bad_steps, self.policy.roll_backs
        message = f"step {step} is {self.guard.reason}, and checkpoint.bad_steps allows {tolerated}"
        if len(self._rollbacks) >= times:
            after = f" and checkpoint.roll_backs {times}" if times else ""
            raise CheckpointError(
                f"{message}{after}; the newest checkpoint precedes these steps: lower the learning rate, or look at "
                "the data of these steps in the ledger"
            )
        self.store.finish()
        newest = self.store.newest(before=self._rolled_back_to)
        if newest is None:
            raise CheckpointError(
                f"{message}; there is no checkpoint to roll back to: lower the learning rate or checkpoint.every"
            )
        reshard(module.model)
        optimizer, schedule = trainer.optimizers[0], trainer.lr_scheduler_configs[0].scheduler
        self.store.load(newest, module.model, optimizer)
        for group, rate in zip(optimizer.param_groups, schedule.get_last_lr(), strict=True):
            group["lr"] = rate
        module.on_rollback(step)
        log.warning(
            "%s: the stage rolls back to the weights of step %d and continues with the next samples",
            message,
            newest.step,
        )
        self._rollbacks.append(step)
        self._rolled_back_to, self._due = newest.step, True
        self.guard.reset()

    def _inherited_rank_state(self, dp_rank: DataRank, state: dict[str, Any]) -> dict[str, list[Any]]:
        """This rank's part of the rank state that the modules saved: that of its data-parallel rank.

        When the number of data-parallel ranks has changed, all items are dealt out over the new ones. The ranks of a
        tensor-parallel group are consecutive; they saved the same and receive the same.
        """
        assert self.resume is not None
        saved_world = state.get("data_world", state["world_size"])
        tensor_ranks = state["world_size"] // saved_world
        unchanged = saved_world == dp_rank.world
        saved_ranks = [dp_rank.rank] if unchanged else range(saved_world)
        items: dict[str, list[Any]] = defaultdict(list)
        for number in saved_ranks:
            rank_state = self.resume.rank_state(number * tensor_ranks) or {}
            for name, saved in rank_state.get("module", {}).items():
                items[name] += saved
        return items if unchanged else {name: each[dp_rank.rank :: dp_rank.world] for name, each in items.items()}

    def _check_same_checkpoint(self, trainer: Trainer) -> None:
        """Raise when ranks, each of which reads the folder itself, would resume from different checkpoints."""
        mine = None if self.resume is None else (self.resume.step, self.resume.attempt)
        chosen = trainer.strategy.broadcast(mine)
        if chosen != mine:
            raise CheckpointError(
                f"rank {_rank()} would resume from (step, attempt) {mine}, the first rank from {chosen}; restart"
            )


class Termination:
    """Records whether this process received SIGTERM or SIGUSR1.

    Replaces Lightning's handlers while a stage trains. With several ranks those broadcast from inside the signal
    handler, at any point between collectives, and heed the first rank's signal alone.
    """

    def __init__(self) -> None:
        self.requested = False
        self._replaced: dict[signal.Signals, Any] = {}

    def watch(self) -> None:
        """Install the handlers. Does nothing outside the main thread, the only one that receives signals."""
        if not self._replaced and threading.current_thread() is threading.main_thread():
            self._replaced = {number: signal.signal(number, self._notice) for number in TERMINATION_SIGNALS}

    def end(self) -> None:
        """Restore the handlers that were there before."""
        for number, handler in self._replaced.items():
            signal.signal(number, handler)
        self._replaced = {}

    def _notice(self, *_: Any) -> None:
        self.requested = True


def _rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0
