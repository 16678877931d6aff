"""One attempt on one node: its workers are watched until they end, hang, are told to end, or another node's fail."""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from framework.launch.supervisor.coordinator import Order
from framework.launch.supervisor.failure import CAUSE, MENTION, TOLD, Failure, Kind, WorkerExit, classify
from framework.launch.supervisor.watchdog import HangRules, Steps, Watch
from framework.launch.supervisor.workers import Meeting, Place, Workers
from framework.run.heartbeat import Heartbeat
from framework.run.phases import Line, Phase, PhaseLedger, parse_line

log = logging.getLogger(__name__)

LOOK_S = 0.1
"""How often workers are looked at (s)."""
RENEW_S = 15.0
"""How often the ledger says what step training is at (s), so that little is unknown of a node that is lost."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a node's workers ended: `done`, by a `failure` of this node, or neither: they were ordered to stop."""

    done: bool = False
    failure: Failure | None = None


@dataclass(frozen=True, slots=True)
class Grace:
    """How long workers have (s): to save, once they were told to end; to say what they make of a peer's end, which may
    be the cause and may be a consequence; to stop, before they are killed.
    """

    save_s: float = 600.0
    settle_s: float = 2.0
    stop_s: float = 5.0


class Attempt:
    """Runs `command` as this node's workers, watched by `rules`; `steps` are the run's step times so far.

    `told` gives the signal by which this supervisor was told to end, `orders` what the council says; it raises
    `ConnectionResetError` when that is gone.
    """

    def __init__(
        self,
        command: Sequence[str],
        place: Place,
        meeting: Meeting,
        folder: Path,
        rules: HangRules,
        steps: Steps,
        grace: Grace,
        told: Callable[[], signal.Signals | None],
        orders: Callable[[], Order | None],
    ) -> None:
        self.place = place
        self.grace = grace
        self.told = told
        self.orders = orders
        self.ledger = PhaseLedger(folder, meeting.attempt, place.node, place.workers)
        self.watch = Watch(rules, steps, time.monotonic())
        self.tail = _Tail(self.ledger.path)
        self.step: int | None = None
        self.beat_at = self.renewed = time.time()
        self.kills = _oom_kills()
        self.workers = Workers(command, place, meeting, folder, self._on_beat)

    def run(self) -> Outcome:
        """Watch the workers to their end; nothing of them is left then."""
        try:
            outcome = self._watch()
            if not outcome.done:
                why = None if outcome.failure is None else str(outcome.failure)
                self.ledger.begin(Phase.LOST, self.step, why=why)
        finally:
            self.workers.reap(self.grace.stop_s)
        return outcome

    def _watch(self) -> Outcome:
        while True:
            self._read_phases()
            ended = self.workers.ended()
            if any(worker.code for worker in ended):
                return Outcome(failure=self._failure())
            if len(ended) == self.place.workers:
                return Outcome(done=True)
            if (number := self.told()) is not None:
                return self._let_save(number)
            if (silence := self.watch.overdue(time.monotonic())) is not None:
                return Outcome(failure=self._hang(silence))
            if (order := self._ordered()) is not None:
                return self._stop(order)
            time.sleep(LOOK_S)

    def _ordered(self) -> Order | None:
        try:
            return self.orders()
        except ConnectionResetError as error:
            log.warning("%s: stopping the workers", error)
            return Order("stop")

    def _failure(self) -> Failure:
        self.workers.wait(self.grace.settle_s)
        failed = [ended for ended in self.workers.ended() if ended.code]
        return classify(failed, self.place.node, time.time(), out_of_memory=_oom_kills() > self.kills)

    def _let_save(self, number: signal.Signals) -> Outcome:
        """Pass on what the scheduler said; workers save at their step's end."""
        self.workers.signal(number)
        in_time = self.workers.wait(self.grace.save_s)
        ended: list[WorkerExit] = self.workers.ended()
        if in_time and not any(worker.code for worker in ended):
            return Outcome(done=True)
        kind = Kind.WALL_TIME if number == signal.SIGUSR1 else Kind.PREEMPTION
        saved = "" if in_time else f", and had not ended {self.grace.save_s:.0f} s later"
        return Outcome(failure=Failure(kind, f"told by {number.name}{saved}", self.place.node, time.time(), TOLD))

    def _hang(self, silence: str) -> Failure:
        self.ledger.begin(Phase.HANG, self.step, at=self.beat_at)
        found = self.workers.dump()
        return self._hung([silence, *found], CAUSE if found else MENTION)

    def _stop(self, order: Order) -> Outcome:
        """Another node wants it. Where that one hangs, this one may know which rank it waits for."""
        found = self.workers.dump() if order.dump else []
        return Outcome(failure=self._hung(found, CAUSE) if found else None)

    def _hung(self, said: list[str], telling: int) -> Failure:
        detail = "; ".join([*said, f"stacks in {self.workers.stacks}"])
        return Failure(Kind.HANG, detail, self.place.node, time.time(), telling)

    def _on_beat(self, beat: Heartbeat) -> None:
        self.step = beat.step
        self.beat_at = time.time()
        self.watch.step(beat.stage, beat.step_s, time.monotonic())
        if self.beat_at - self.renewed > RENEW_S and self.watch.phase is Phase.PRODUCTIVE:
            self.renewed = self.beat_at
            self.ledger.begin(Phase.PRODUCTIVE, beat.step)

    def _read_phases(self) -> None:
        for line in self.tail.read():
            if line.attempt == self.ledger.attempt:
                self.watch.enter(line.phase, time.monotonic())
                self.beat_at = line.time


class _Tail:
    """What is appended to a ledger of phases from now on."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.place = path.stat().st_size if path.exists() else 0
        self.rest = b""

    def read(self) -> list[Line]:
        """The lines that have come since this was last asked."""
        try:
            with self.path.open("rb") as file:
                file.seek(self.place)
                fresh = file.read()
        except FileNotFoundError:
            return []
        self.place += len(fresh)
        *whole, self.rest = (self.rest + fresh).split(b"\n")
        return [line for text in whole if (line := parse_line(text.decode("utf-8", "replace")))]


def _oom_kills() -> int:
    """How often the kernel has killed for want of memory in this process's control group; 0 where nobody counts."""
    try:
        events = Path("/sys/fs/cgroup/memory.events").read_text().split()
    except OSError:
        return 0
    counts = dict(zip(events[::2], events[1::2], strict=True))
    return int(counts.get("oom_kill", "0"))
