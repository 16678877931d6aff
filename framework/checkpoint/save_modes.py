"""How a checkpoint is written: while training waits, or in the background."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Literal, Protocol

from torch import Tensor
from torch.optim import Optimizer

from framework.checkpoint.checkpoint_writer import CheckpointWriter
from framework.checkpoint.daemon import Daemon
from framework.checkpoint.manifest import CheckpointError
from framework.checkpoint.rank_group import RankGroup, SaveLostError
from framework.checkpoint.save import SaveRequest, write_checkpoint
from framework.checkpoint.save_plan import PlanCache, RankPlan
from framework.checkpoint.staging import Arena, HostCopy
from framework.recipe.component import component
from framework.recipe.ranges import Count, Seconds

log = logging.getLogger(__name__)

COPY_AHEAD = 256 * 2**20
"""Bytes in flight from a GPU while others are written."""
GRACE_S = 60.0
"""Seconds that ranks wait for each other beyond a daemon's timeout: the rank whose daemon hangs tells the others."""


class SaveMode(Protocol):
    """Writes the checkpoints of one run. Its methods are called on the thread that trains."""

    timeout_s: float

    def start(self) -> None:
        """Start what takes seconds, so that the first save need not wait."""
        ...

    def save(
        self,
        ranks: RankGroup,
        request: SaveRequest,
        tensors: Mapping[str, Tensor],
        changed_by_forward: set[str],
        optimizer: Optimizer,
    ) -> None:
        """Write `tensors` as they are now (collective).

        Those named in `changed_by_forward` may change in a forward pass, all others only in a step of `optimizer`.
        """
        ...

    def poll(self) -> None:
        """Raise `CheckpointError` when a save has failed meanwhile."""
        ...

    def finish(self, within_s: float | None = None) -> bool:
        """Wait for the save in flight, at most `within_s` seconds; raises like `poll`.

        Returns False when the save was lost, so that another try is worth it.
        """
        ...

    def close(self) -> None:
        """Release all resources; a save in flight is lost."""
        ...


@component
class Synchronous:
    """Training waits until the checkpoint is committed. For models that are written in milliseconds.

    Args:
        timeout_s: Seconds that ranks wait for each other in a save.
    """

    def __init__(self, timeout_s: Seconds = 1800.0) -> None:
        self.timeout_s = timeout_s
        self._plans = PlanCache()
        self._writer = CheckpointWriter()

    def start(self) -> None:
        """Nothing to start."""

    def save(
        self,
        ranks: RankGroup,
        request: SaveRequest,
        tensors: Mapping[str, Tensor],
        changed_by_forward: set[str],
        optimizer: Optimizer,
    ) -> None:
        """Write and commit; raises `CheckpointError` when the disk refuses."""
        rank_plan = self._plans.update(ranks, tensors)
        self._writer.prepare(rank_plan, tensors, COPY_AHEAD)
        try:
            write_checkpoint(ranks, self._writer, request)
        finally:
            self._writer.prepare(rank_plan, {})  # hold on to no stage's weights

    def poll(self) -> None:
        """Nothing is in flight."""

    def finish(self, within_s: float | None = None) -> bool:
        """Nothing is in flight."""
        return True

    def close(self) -> None:
        """Nothing to release."""


@component
class Asynchronous:
    """Training goes on while a daemon of each rank, or a thread, writes the checkpoint.

    A save copies the tensors into host memory during the next step's forward and backward pass; the optimizer's step
    waits for that copy and for nothing else. At most one save is in flight; the next one waits for it. A daemon that
    dies is replaced; its save is lost, which is logged.

    Args:
        mode: `process` writes in a daemon of each rank, which takes neither the interpreter nor the cores' time from
            training; `thread` writes in a thread of the training process.
        timeout_s: Seconds after which a save is given up.
        max_lost_saves: Consecutive lost saves that are tolerated; one more is an error.
        writer: Builds the writer; tests inject faults here.
    """

    def __init__(
        self,
        mode: Literal["process", "thread"] = "process",
        timeout_s: Seconds = 1800.0,
        max_lost_saves: Count = 2,
        writer: Callable[[], CheckpointWriter] = CheckpointWriter,
    ) -> None:
        if mode not in ("process", "thread"):
            raise ValueError(f"checkpoint.save_mode.mode: {mode!r}; process or thread")
        if timeout_s <= 0:
            raise ValueError(f"checkpoint.save_mode.timeout_s: {timeout_s}; give seconds")
        self.mode = mode
        self.timeout_s = timeout_s
        self.max_lost_saves = max_lost_saves
        self._make_writer = writer
        self._writer = writer()
        self._daemon: Daemon | None = None
        self._plans = PlanCache()
        self._arena: Arena | None = None
        self._pending: _PendingSave | None = None
        self._lost = 0

    def start(self) -> None:
        """Start the daemon, or a new one in place of one that died."""
        if self.mode == "process" and (self._daemon is None or not self._daemon.alive):
            if self._daemon is not None:
                log.warning("checkpoint daemon %d died; starting another", self._daemon.pid)
                self._daemon.close()
            self._daemon = Daemon(self._make_writer)

    def save(
        self,
        ranks: RankGroup,
        request: SaveRequest,
        tensors: Mapping[str, Tensor],
        changed_by_forward: set[str],
        optimizer: Optimizer,
    ) -> None:
        """Start a save once the one before has ended; raises the failure of that one."""
        self.finish()
        self.start()
        previous_plan = self._plans.rank_plan
        rank_plan = self._plans.update(ranks, tensors)
        if rank_plan is not previous_plan and self._arena is not None:
            self._arena.close()
            self._arena = None
        host_copy = HostCopy({name: tensors[name] for name in rank_plan.names}, changed_by_forward)
        write = self._write_function(ranks, request, rank_plan, host_copy)
        self._pending = _PendingSave(request, host_copy, write, optimizer)

    def poll(self) -> None:
        """Raise the failure of the save in flight, if it is known; replace a daemon that died."""
        if self._pending is None:
            if self._daemon is not None:
                self.start()
        elif self._pending.done or self._pending.seconds > self.timeout_s + GRACE_S:
            self.finish(0.0)

    def finish(self, within_s: float | None = None) -> bool:
        """Wait for the save in flight; False when it was lost.

        Raises `CheckpointError` when the save failed or timed out, or after more than `max_lost_saves` consecutive lost
        saves.
        """
        if self._pending is None:
            return True
        pending, limit = self._pending, self.timeout_s + GRACE_S
        step = pending.request.step
        try:
            pending.result(max(0.0, limit - pending.seconds) if within_s is None else within_s)
        except TimeoutError:
            if within_s is not None and pending.seconds <= limit:
                raise CheckpointError(f"step {step}: not saved within {within_s:.0f} s") from None
            self._pending = self._arena = None  # its thread may still write from there
            raise CheckpointError(
                f"step {step}: not saved after {pending.seconds:.0f} s; look at the storage, or raise"
                " checkpoint.save_mode.timeout_s"
            ) from None
        except SaveLostError as error:
            self._pending = None
            self._lost += 1
            log.warning("the save of step %d is lost: %s", step, error)
            if self._lost > self.max_lost_saves:
                raise CheckpointError(
                    f"{self._lost} saves in a row were lost, the last one of step {step}: {error};"
                    " is the host's memory short?"
                ) from error
            return False
        except CheckpointError as error:
            self._pending = None
            raise CheckpointError(f"the save of step {step} failed: {error}") from error
        self._pending, self._lost = None, 0
        return True

    def close(self) -> None:
        """Kill the daemon and free the staging memory."""
        if self._daemon is not None:
            self._daemon.kill()
        if self._pending is None or self._pending.ended(GRACE_S):  # else its thread may still use them
            if self._daemon is not None:
                self._daemon.close()
            if self._arena is not None:
                self._arena.close()
        self._daemon = self._arena = self._pending = None
        self._plans = PlanCache()

    def _write_function(
        self, ranks: RankGroup, request: SaveRequest, rank_plan: RankPlan, host_copy: HostCopy
    ) -> Callable[[], None]:
        daemon, deadline = self._daemon, time.monotonic() + self.timeout_s

        def prepare() -> None:
            arena = self._arena = host_copy.run(self._arena)
            if daemon is None:
                self._writer.prepare(rank_plan, arena.tensors)
            else:
                daemon.deadline = deadline
                daemon.prepare(rank_plan, arena)

        def write() -> None:
            ranks.gather(prepare)
            write_checkpoint(ranks, daemon or self._writer, request)

        return write


class _PendingSave:
    """One save in flight: runs `write` on its own thread. The optimizer's step waits for `host_copy`."""

    def __init__(
        self, request: SaveRequest, host_copy: HostCopy, write: Callable[[], None], optimizer: Optimizer
    ) -> None:
        self.request = request
        self._started = time.monotonic()
        self._result: Future[None] = Future()
        self._hook = optimizer.register_step_pre_hook(lambda *_: host_copy.wait())
        name = f"checkpoint of step {request.step}"
        threading.Thread(target=self._run, args=(write,), name=name, daemon=True).start()

    @property
    def seconds(self) -> float:
        """Seconds since it started."""
        return time.monotonic() - self._started

    @property
    def done(self) -> bool:
        """Whether its result is known."""
        return self._result.done()

    def result(self, within_s: float) -> None:
        """Wait for the save and raise its failure; `TimeoutError` when it takes longer."""
        try:
            self._result.result(within_s)
        finally:
            if self.done:
                self._hook.remove()

    def ended(self, within_s: float) -> bool:
        """Wait for the save, whatever its result; whether it ended in time."""
        try:
            self.result(within_s)
        except (TimeoutError, CheckpointError, SaveLostError):
            return self.done
        return True

    def _run(self, write: Callable[[], None]) -> None:
        try:
            write()
        except (CheckpointError, SaveLostError) as error:
            self._result.set_exception(error)
        except RuntimeError as error:  # the group's: another rank is gone
            self._result.set_exception(SaveLostError(f"the ranks lost each other ({error})"))
        except BaseException as error:
            log.exception("checkpoint of step %d", self.request.step)
            self._result.set_exception(CheckpointError(f"{type(error).__name__}: {error}"))
        else:
            self._result.set_result(None)
