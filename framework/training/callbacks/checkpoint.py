"""Saves and resumes a stage at step boundaries, so that a resumed run cannot be told from an undisturbed one."""

from __future__ import annotations

import logging
import signal
import threading
from collections import defaultdict
from typing import Any

import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import SIGTERMException

from framework.checkpoint.manifest import CheckpointError
from framework.checkpoint.policy import CheckpointPolicy
from framework.checkpoint.randomness import random_state, restore_random_state
from framework.checkpoint.store import Checkpoint, CheckpointStore
from framework.parallel.mesh import DataRank
from framework.parallel.sharding import reshard
from framework.run.phases import Phase, PhaseLedger
from framework.training.callbacks.nonfinite import Health
from framework.training.datamodule import loader_of
from framework.training.stage_module import StageModule

log = logging.getLogger(__name__)

TERMINATION = (signal.SIGTERM, signal.SIGUSR1)
"""What schedulers send: to end now, and some time before the job's time is up."""
LAST_SAVE_S = 60.0
"""Seconds that a run which ends with an error gives the save in flight."""


class Checkpointing(Callback):
    """Commits the loader's cursor after each step, saves by `policy`, and resumes from `resume` when the stage begins.

    Saves also when the run was told to terminate (SIGTERM, or SIGUSR1 before a job's time is up), at the step's
    boundary, never inside a signal handler, and ends only when that save is committed. A step whose loss or gradient
    norm is not finite is not saved: the save waits for the next step that is. After too many such steps in a row the
    stage goes back to the newest checkpoint's weights and on with the samples that are next, as often as `policy`
    allows. `CheckpointError` ends the run when it does not, when the stage would end with such a step, or when a save
    failed.
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
        self.health = Health(policy.bad_steps)
        self._due = False
        self._went_back: list[int] = []
        self._older: int | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore model, optimizer, schedule, cursor, step and random generators; or begin at the stage's start."""
        assert isinstance(pl_module, StageModule)
        span = pl_module.stage_range
        step = span.start
        self._agree(trainer)
        self.store.start()
        state = {} if self.resume is None else self.resume.state()
        if self.resume is not None:
            pl_module.load_states(state.get("module", {}), self._inherited(pl_module.dp_rank, state))
        pl_module.start_stage(lambda name: CheckpointStore(self.store.folder.parent / name), self.resume is not None)
        if self.resume is not None:
            step = self.resume.step
            rank_state = self.resume.rank_state(_rank())
            self._went_back = state.get("went_back", [])
            self.store.load(self.resume, pl_module.model, trainer.optimizers[0])
            trainer.lr_scheduler_configs[0].scheduler.load_state_dict(state["schedule"])
            loader_of(trainer).load_state_dict(state["cursor"])
            if rank_state is not None:
                restore_random_state(rank_state["random"])
            log.info("resumed stage %s at step %d from %s", span.name, step, self.resume.folder)
        # Lightning counts optimizer steps here, for global_step and max_steps; there is no public way to set it.
        progress = trainer.fit_loop.epoch_loop.manual_optimization.optim_step_progress
        progress.total.ready = progress.total.completed = step

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Lightning's signal handlers are there now, and can be set aside."""
        self.termination.watch()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """The step is trained: count it, and save when it is time."""
        assert isinstance(pl_module, StageModule)
        step = trainer.global_step
        loader_of(trainer).commit(step, outputs.get("shares", 1))
        self.store.poll()
        self.health.add(step, outputs["metrics"])
        if self.health.good:
            self._older = None
        elif self.health.lost:
            self._go_back(trainer, pl_module, step)
        told = trainer.strategy.reduce_boolean_decision(self.termination.told or trainer.received_sigterm, all=False)
        ends = step == pl_module.stage_range.end
        self._due |= step % self.policy.every == 0 or ends
        if self.health.good and (self._due or told):
            with self.phases.during(Phase.CHECKPOINT, step):
                self._save(trainer, pl_module, step)
                while (ends or told) and not self.store.finish():
                    self._save(trainer, pl_module, step)
        elif ends:
            raise CheckpointError(
                f"stage {pl_module.stage_range.name} ends, but step {step} is {self.health}; not saved"
            )
        if told:
            raise SIGTERMException

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The stage's last checkpoint is committed."""
        self.termination.end()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """A save in flight is good, whatever ended the run: let it finish."""
        self.termination.end()
        try:
            self.store.finish(within_s=LAST_SAVE_S)
        except CheckpointError as error:
            log.warning("%s", error)

    def _save(self, trainer: Trainer, module: StageModule, step: int) -> None:
        optimizer, schedule = trainer.optimizers[0], trainer.lr_scheduler_configs[0].scheduler
        state = {
            "stage": module.stage_range.name,
            "schedule": schedule.state_dict(),
            "cursor": loader_of(trainer).state_dict(),
            "world_size": trainer.world_size,
            "data_world": module.dp_rank.world,
            "metrics": self.health.means(),
            "went_back": self._went_back,
            "module": module.state(),
        }
        rank_state = {"random": random_state(), "module": module.rank_state()}
        self.store.save(step, self.phases.attempt, module.model, optimizer, state, rank_state)
        self._due = False

    def _go_back(self, trainer: Trainer, module: StageModule, step: int) -> None:
        """Load the newest checkpoint, to be saved as that of `step`, so that no attempt meets the same samples again.
        Steps and schedule count on. Where no step was good since the stage last went back, an older one is loaded.
        """
        allowed, times = self.policy.bad_steps, self.policy.roll_backs
        said = f"step {step} is {self.health}, and checkpoint.bad_steps allows {allowed}"
        if len(self._went_back) >= times:
            after = f" and checkpoint.roll_backs {times}" if times else ""
            raise CheckpointError(
                f"{said}{after}; the newest checkpoint is from before: lower the rate, or look at the data of these "
                "steps in the ledger"
            )
        self.store.finish()
        newest = self.store.newest(before=self._older)
        if newest is None:
            raise CheckpointError(f"{said}; there is no checkpoint to go back to: lower the rate or checkpoint.every")
        reshard(module.model)
        optimizer, schedule = trainer.optimizers[0], trainer.lr_scheduler_configs[0].scheduler
        self.store.load(newest, module.model, optimizer)
        for group, rate in zip(optimizer.param_groups, schedule.get_last_lr(), strict=True):
            group["lr"] = rate
        module.on_rollback(step)
        log.warning("%s: back to the weights of step %d, on with the next samples", said, newest.step)
        self._went_back.append(step)
        self._older, self._due = newest.step, True
        self.health.begin_again()

    def _inherited(self, dp_rank: DataRank, state: dict[str, Any]) -> dict[str, list[Any]]:
        """What falls to this rank of what the modules kept: that of its `dp_rank`; where there were more or
        fewer places, all that was kept, dealt out anew. RankGroup of one tensor-parallel group, which follow each
        other, kept the same, and get the same.
        """
        assert self.resume is not None
        places = state.get("data_world", state["world_size"])
        together = state["world_size"] // places
        same = places == dp_rank.world
        kept = [self.resume.rank_state(number * together) for number in ([dp_rank.rank] if same else range(places))]
        every: dict[str, list[Any]] = defaultdict(list)
        for found in kept:
            for name, items in (found or {}).get("module", {}).items():
                every[name] += items
        return every if same else {name: items[dp_rank.rank :: dp_rank.world] for name, items in every.items()}

    def _agree(self, trainer: Trainer) -> None:
        """RankGroup that look into the folder by themselves may find different things there."""
        mine = None if self.resume is None else (self.resume.step, self.resume.attempt)
        chosen = trainer.strategy.broadcast(mine)
        if chosen != mine:
            raise CheckpointError(
                f"rank {_rank()} would resume from (step, attempt) {mine}, the first rank from {chosen}; start again"
            )


class Termination:
    """Whether this process was sent SIGTERM or SIGUSR1.

    Lightning's own handlers are set aside while a stage is trained: with several ranks it broadcasts from inside the
    signal handler, wherever in their collectives the ranks may be, and heeds the first rank's signal alone.
    """

    def __init__(self) -> None:
        self.told = False
        self._before: dict[signal.Signals, Any] = {}

    def watch(self) -> None:
        """From now on. Signals reach the main thread alone; elsewhere nothing is watched."""
        if not self._before and threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._notice) for number in TERMINATION}

    def end(self) -> None:
        """No longer."""
        for number, before in self._before.items():
            signal.signal(number, before)
        self._before = {}

    def _notice(self, *_: Any) -> None:
        self.told = True


def _rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0
