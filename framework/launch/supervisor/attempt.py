"""One attempt on one node: the workers are watched until they end, hang, must stop, or another node's fail."""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from framework.launch.spec import RunSpec
from framework.launch.supervisor.failure import Evidence, Failure, Kind, classify
from framework.launch.supervisor.messages import Order
from framework.launch.supervisor.watchdog import StepTimes, Watchdog
from framework.launch.supervisor.workers import Workers
from framework.run.heartbeat import Heartbeat
from framework.run.phases import Line, Phase, PhaseLedger, parse_line

log = logging.getLogger(__name__)

POLL_S = 0.1
"""Interval at which the workers are checked (s)."""
RENEW_S = 15.0
"""Interval at which the ledger records training's step (s), so that little is unknown of a node that is lost."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How the workers of a node ended. Neither done nor failed: they were ordered to stop."""

    done: bool = False
    """All workers succeeded."""
    failure: Failure | None = None
    """This node's own failure."""
    exit_code: int | None = None
    """With what the supervisor ends, where the coordinator ordered that during the attempt."""


@dataclass(frozen=True, slots=True)
class GracePeriods:
    """How long the supervisor waits for its workers."""

    save_s: float = 600.0
    """To save, once the scheduler has asked the job to end (s)."""
    settle_s: float = 2.0
    """For other workers to fail, once one has (s): its failure may be the cause or a consequence."""
    stop_s: float = 5.0
    """To stop on SIGTERM, before SIGKILL (s)."""


class Attempt:
    """An attempt on this node. Constructing it starts the workers.

    Args:
        spec: The job.
        node: This node's number in the job.
        command: What each worker runs.
        number: The attempt's number.
        rendezvous: Host and port where all ranks of the attempt meet.
        step_times: The run's step times so far, extended by this attempt.
        grace: How long to wait for the workers.
        stop_signal: Returns the signal by which this supervisor must end, or None.
        next_order: Returns the coordinator's next order, or None. Raises `ConnectionResetError` when the coordinator is
            gone.
    """

    def __init__(
        self,
        spec: RunSpec,
        node: int,
        command: Sequence[str],
        number: int,
        rendezvous: tuple[str, int],
        step_times: StepTimes,
        grace: GracePeriods,
        stop_signal: Callable[[], signal.Signals | None],
        next_order: Callable[[], Order | None],
    ) -> None:
        self.node = node
        self.grace = grace
        self.stop_signal = stop_signal
        self.next_order = next_order
        self.ledger = PhaseLedger(Path(spec.folder), number, node, spec.devices)
        self.watchdog = Watchdog(spec.hang, step_times, time.monotonic())
        self.tail = _LedgerTail(self.ledger.path)
        self.step: int | None = None
        self.last_sign = self.renewed = time.time()
        self.oom_kills = _oom_kills()
        self.workers = Workers(command, spec, node, number, rendezvous, self._on_beat)

    def run(self) -> Outcome:
        """Watch the workers until they end; afterwards no process of theirs is left."""
        try:
            outcome = self._watch()
            if not outcome.done and outcome.exit_code is None:
                why = None if outcome.failure is None else str(outcome.failure)
                self.ledger.begin(Phase.LOST, self.step, why=why)
        finally:
            self.workers.reap(self.grace.stop_s)
        return outcome

    def _watch(self) -> Outcome:
        while True:
            self._read_phases()
            ended = self.workers.ended()
            if len(ended) == len(self.workers.ranks) and not any(worker.code for worker in ended):
                return Outcome(done=True)
            if (number := self.stop_signal()) is not None:  # the workers may have received it, too, and ended first
                return self._let_save(number)
            if any(worker.code for worker in ended):
                return Outcome(failure=self._failure())
            if (silence := self.watchdog.overdue(time.monotonic())) is not None:
                return Outcome(failure=self._hang(silence))
            if (order := self._order()) is not None:
                return self._stop(order)
            time.sleep(POLL_S)

    def _order(self) -> Order | None:
        try:
            return self.next_order()
        except ConnectionResetError as error:
            log.warning("%s: stopping the workers", error)
            return Order("stop")

    def _failure(self) -> Failure:
        self.workers.wait(self.grace.settle_s)
        failed = [worker for worker in self.workers.ended() if worker.code]
        return classify(failed, self.node, time.time(), out_of_memory=_oom_kills() > self.oom_kills)

    def _let_save(self, number: signal.Signals) -> Outcome:
        """Pass the scheduler's signal on; workers save at the end of their step."""
        self.workers.signal(number)
        in_time = self.workers.wait(self.grace.save_s)
        if in_time and not any(worker.code for worker in self.workers.ended()):
            return Outcome(done=True)
        kind = Kind.WALL_TIME if number == signal.SIGUSR1 else Kind.PREEMPTION
        late = "" if in_time else f", workers still ran {self.grace.save_s:.0f} s later"
        detail = f"received {number.name}{late}"
        return Outcome(failure=Failure(kind, detail, self.node, time.time(), Evidence.REQUESTED))

    def _hang(self, silence: str) -> Failure:
        self.ledger.begin(Phase.HANG, self.step, at=self.last_sign)
        states = self.workers.dump()
        return self._hang_failure([silence, *states], Evidence.CAUSE if states else Evidence.MENTION)

    def _stop(self, order: Order) -> Outcome:
        """Stop because the coordinator says so: the job ends, or another node failed. If that one hangs, this one may
        know which rank it waits for.
        """
        if order.action == "exit":
            return Outcome(exit_code=order.code)
        states = self.workers.dump() if order.dump else []
        return Outcome(failure=self._hang_failure(states, Evidence.CAUSE) if states else None)

    def _hang_failure(self, details: list[str], evidence: Evidence) -> Failure:
        detail = "; ".join([*details, f"stacks in {self.workers.stacks}"])
        return Failure(Kind.HANG, detail, self.node, time.time(), evidence)

    def _on_beat(self, beat: Heartbeat) -> None:
        self.step = beat.step
        self.last_sign = time.time()
        self.watchdog.step(beat.stage, beat.step_s, time.monotonic())
        if self.last_sign - self.renewed > RENEW_S and self.watchdog.phase is Phase.PRODUCTIVE:
            self.renewed = self.last_sign
            self.ledger.begin(Phase.PRODUCTIVE, beat.step)

    def _read_phases(self) -> None:
        for line in self.tail.read():
            if line.attempt == self.ledger.attempt:
                self.watchdog.enter(line.phase, time.monotonic())
                self.last_sign = line.time


class _LedgerTail:
    """Reads what is appended to a ledger of phases from now on."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.offset = path.stat().st_size if path.exists() else 0
        self.rest = b""

    def read(self) -> list[Line]:
        """Return the lines appended since the last call."""
        try:
            with self.path.open("rb") as file:
                file.seek(self.offset)
                fresh = file.read()
        except FileNotFoundError:
            return []
        self.offset += len(fresh)
        *lines, self.rest = (self.rest + fresh).split(b"\n")
        return [line for text in lines if (line := parse_line(text.decode("utf-8", "replace")))]


def _oom_kills() -> int:
    """Processes of this control group that the kernel has killed for lack of memory; 0 where nobody counts them."""
    try:
        events = Path("/sys/fs/cgroup/memory.events").read_text().split()
    except OSError:
        return 0
    counts = dict(zip(events[::2], events[1::2], strict=True))
    return int(counts.get("oom_kill", "0"))
