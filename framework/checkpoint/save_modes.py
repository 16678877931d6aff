"""When a checkpoint is written: while training waits, or beside it."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Literal, Protocol

from torch import Tensor
from torch.optim import Optimizer

from framework.checkpoint.checkpoint_writer import CheckpointWriter, SaveRequest, write_checkpoint
from framework.checkpoint.daemon import Daemon
from framework.checkpoint.manifest import CheckpointError
from framework.checkpoint.plan import Share, share_out, signature
from framework.checkpoint.rank_group import RankGroup, SaveLost
from framework.checkpoint.staging import Arena, Copying

log = logging.getLogger(__name__)

COPY_AHEAD = 256 * 2**20
"""Bytes on their way from a GPU while others are written."""
GRACE_S = 60.0
"""Seconds that ranks wait longer for each other than for a daemon: the rank whose daemon hangs tells the others."""


class Writer(Protocol):
    """Writes checkpoints; one object serves one run. Its methods are called on the thread that trains."""

    timeout_s: float

    def start(self) -> None:
        """Begin what takes its time, so that the first save need not wait."""
        ...

    def save(
        self, ranks: RankGroup, order: SaveRequest, tensors: Mapping[str, Tensor], at_once: set[str], by: Optimizer
    ) -> None:
        """Write `tensors` as they are now (collective). All but those in `at_once` change in steps of `by` alone."""
        ...

    def poll(self) -> None:
        """Raise `CheckpointError` when a save has failed meanwhile."""
        ...

    def finish(self, within_s: float | None = None) -> bool:
        """Wait for the save in flight, at most `within_s` seconds; raises like `poll`. False when it was lost, so that
        another try is worth it.
        """
        ...

    def close(self) -> None:
        """Give everything back; a save in flight is lost."""
        ...


class _Shares:
    """The plan of the tensors saved last, agreed on anew when they change."""

    def __init__(self) -> None:
        self._signature: dict[str, object] = {}
        self.share: Share | None = None

    def update(self, ranks: RankGroup, tensors: Mapping[str, Tensor]) -> bool:
        """Whether there is a new plan (collective)."""
        now = signature(tensors)
        if self.share is not None and now == self._signature:
            return False
        self.share, self._signature = share_out(ranks, tensors), now
        return True


class Synchronous:
    """Training waits until the checkpoint is committed; right for models that are written in a blink."""

    def __init__(self, timeout_s: float = 1800.0) -> None:
        self.timeout_s = timeout_s
        self._shares = _Shares()
        self._scribe = CheckpointWriter()

    def start(self) -> None:
        """Nothing to begin."""

    def save(
        self, ranks: RankGroup, order: SaveRequest, tensors: Mapping[str, Tensor], at_once: set[str], by: Optimizer
    ) -> None:
        """Write and commit; raises `CheckpointError` when the disk refuses."""
        self._shares.update(ranks, tensors)
        assert self._shares.share is not None
        self._scribe.take(self._shares.share, tensors, COPY_AHEAD)
        try:
            write_checkpoint(ranks, self._scribe, order)
        finally:
            self._scribe.take(self._shares.share, {})  # hold on to no stage's weights

    def poll(self) -> None:
        """Nothing is in flight."""

    def finish(self, within_s: float | None = None) -> bool:
        """Nothing is in flight."""
        return True

    def close(self) -> None:
        """Nothing to give back."""


class Asynchronous:
    """Training goes on while the checkpoint is written: by a daemon of each rank (`mode="process"`), or by a thread.

    A save copies the tensors into host memory during the next step's forward and backward pass; the optimizer's step
    waits for that copy, and for nothing else. There is at most one save in flight: the next one waits for it. A save
    that takes longer than `timeout_s` is given up. A daemon that dies is replaced, and its save is lost, which is
    logged; more than `max_lost_saves` lost saves in a row are an error. `writer` makes what writes (tests give a faulty
    one).
    """

    def __init__(
        self,
        mode: Literal["process", "thread"] = "process",
        timeout_s: float = 1800.0,
        max_lost_saves: int = 2,
        writer: Callable[[], CheckpointWriter] = CheckpointWriter,
    ) -> None:
        if mode not in ("process", "thread"):
            raise ValueError(f"checkpoint.writer.mode: {mode!r}; process or thread")
        if timeout_s <= 0:
            raise ValueError(f"checkpoint.writer.timeout_s: {timeout_s}; give seconds")
        self.mode = mode
        self.timeout_s = timeout_s
        self.max_lost_saves = max_lost_saves
        self._make = writer
        self._scribe = writer()
        self._daemon: Daemon | None = None
        self._shares = _Shares()
        self._arena: Arena | None = None
        self._flight: _Flight | None = None
        self._lost = 0

    def start(self) -> None:
        """Start the daemon, or a new one where it died."""
        if self.mode == "process" and (self._daemon is None or not self._daemon.alive):
            if self._daemon is not None:
                log.warning("checkpoint daemon %d is gone; starting another", self._daemon.pid)
                self._daemon.close()
            self._daemon = Daemon(self._make)

    def save(
        self, ranks: RankGroup, order: SaveRequest, tensors: Mapping[str, Tensor], at_once: set[str], by: Optimizer
    ) -> None:
        """Begin a save, once the one before has ended; raises what became of that one."""
        self.finish()
        self.start()
        if self._shares.update(ranks, tensors) and self._arena is not None:
            self._arena.close()
            self._arena = None
        share = self._shares.share
        assert share is not None
        copying = Copying({name: tensors[name] for name in share.names}, at_once)
        self._flight = _Flight(order, copying, self._write(ranks, order, share, copying), by)

    def poll(self) -> None:
        """Raise what became of the save in flight, if that is known; replace a daemon that died."""
        if self._flight is None:
            if self._daemon is not None:
                self.start()
        elif self._flight.done or self._flight.seconds > self.timeout_s + GRACE_S:
            self.finish(0.0)

    def finish(self, within_s: float | None = None) -> bool:
        """Wait for the save in flight; False when it was lost. Raises `CheckpointError` when it failed, when it takes
        too long, or when it is one lost save too many.
        """
        if self._flight is None:
            return True
        flight, limit = self._flight, self.timeout_s + GRACE_S
        try:
            flight.outcome(max(0.0, limit - flight.seconds) if within_s is None else within_s)
        except TimeoutError:
            if within_s is not None and flight.seconds <= limit:
                raise CheckpointError(f"step {flight.order.step}: not saved within {within_s:.0f} s") from None
            self._flight = self._arena = None  # its thread may still write from there
            raise CheckpointError(
                f"step {flight.order.step}: not saved after {flight.seconds:.0f} s; look at the storage, or raise"
                " checkpoint.writer.timeout_s"
            ) from None
        except SaveLost as error:
            self._flight = None
            self._lost += 1
            log.warning("the save of step %d is lost: %s", flight.order.step, error)
            if self._lost > self.max_lost_saves:
                raise CheckpointError(
                    f"{self._lost} saves in a row were lost, the last one of step {flight.order.step}: {error};"
                    " is the host's memory short?"
                ) from error
            return False
        except CheckpointError as error:
            self._flight = None
            raise CheckpointError(f"the save of step {flight.order.step} failed: {error}") from error
        self._flight, self._lost = None, 0
        return True

    def close(self) -> None:
        """End daemon and staging memory."""
        if self._daemon is not None:
            self._daemon.kill()
        if self._flight is None or self._flight.ended(GRACE_S):  # else its thread may still use them
            if self._daemon is not None:
                self._daemon.close()
            if self._arena is not None:
                self._arena.close()
        self._daemon = self._arena = self._flight = None
        self._shares = _Shares()

    def _write(self, ranks: RankGroup, order: SaveRequest, share: Share, copying: Copying) -> Callable[[], None]:
        daemon, deadline = self._daemon, time.monotonic() + self.timeout_s

        def prepare() -> None:
            arena = self._arena = copying.run(self._arena)
            if daemon is None:
                self._scribe.take(share, arena.tensors)
            else:
                daemon.deadline = deadline
                daemon.take(share, arena)

        def write() -> None:
            ranks.gather(prepare)
            write_checkpoint(ranks, daemon or self._scribe, order)

        return write


class _Flight:
    """One save under way: `write`, which begins with `copying`, on its own thread; `optimizer` waits for the copy."""

    def __init__(self, order: SaveRequest, copying: Copying, write: Callable[[], None], optimizer: Optimizer) -> None:
        self.order = order
        self._began = time.monotonic()
        self._outcome: Future[None] = Future()
        self._hook = optimizer.register_step_pre_hook(lambda *_: copying.wait())
        threading.Thread(target=self._run, args=(write,), name=f"checkpoint of step {order.step}", daemon=True).start()

    @property
    def seconds(self) -> float:
        """How long it has been under way."""
        return time.monotonic() - self._began

    @property
    def done(self) -> bool:
        """Whether its outcome is known."""
        return self._outcome.done()

    def outcome(self, within_s: float) -> None:
        """Wait, then return or raise what became of it; `TimeoutError` when that is not known by then."""
        try:
            self._outcome.result(within_s)
        finally:
            if self.done:
                self._hook.remove()

    def ended(self, within_s: float) -> bool:
        """Wait, whatever becomes of it; whether it ended."""
        try:
            self.outcome(within_s)
        except (TimeoutError, CheckpointError, SaveLost):
            return self.done
        return True

    def _run(self, write: Callable[[], None]) -> None:
        try:
            write()
        except (CheckpointError, SaveLost) as error:
            self._outcome.set_exception(error)
        except RuntimeError as error:  # the group's: another rank is gone
            self._outcome.set_exception(SaveLost(f"the ranks lost each other ({error})"))
        except BaseException as error:
            log.exception("checkpoint of step %d", self.order.step)
            self._outcome.set_exception(CheckpointError(f"{type(error).__name__}: {error}"))
        else:
            self._outcome.set_result(None)
