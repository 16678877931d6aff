"""Where a run's GPU hours went, by attempt and phase, and the share that trained steps which were kept."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from framework.run.phases import Line, Phase, PhaseInterval, intervals, read_phases

REPLAY = "replay"
"""The name of the hours spent on steps that an earlier attempt had trained and lost."""


@dataclass
class Account:
    """The hours of one attempt, over all nodes."""

    attempt: int
    """The attempt's number."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Wall time (s) of a mean GPU by phase; `REPLAY` is taken out of the productive time."""
    gpu_hours: dict[str, float] = field(default_factory=dict)
    """GPU hours by phase; `REPLAY` is taken out of the productive hours."""
    first: int | None = None
    """The step that the attempt started from; None where it trained none."""
    last: int | None = None
    """The last step that it trained; None where it trained none."""
    replayed: int = 0
    """How many of its steps an earlier attempt had trained."""
    why: str | None = None
    """The failure that ended it; None where none did."""

    @property
    def total(self) -> float:
        """GPU hours over all phases."""
        return sum(self.gpu_hours.values())

    @property
    def steps(self) -> int:
        """How many steps the attempt trained."""
        return 0 if self.first is None or self.last is None else self.last - self.first


def accounts(folder: Path, now: float) -> list[Account]:
    """The attempts of the run in `folder` up to the time `now` (Unix, s), in order."""
    by_attempt: dict[int, list[PhaseInterval]] = defaultdict(list)
    for lines in read_phases(folder).values():
        for interval in intervals(lines, now):
            by_attempt[interval.line.attempt].append(interval)
    attempts, furthest = [], 0
    for attempt, of_attempt in sorted(by_attempt.items()):
        account = _account(attempt, of_attempt, furthest)
        furthest = max(furthest, account.last or 0)
        attempts.append(account)
    return attempts


def goodput(attempts: Iterable[Account]) -> float:
    """The share of all GPU hours that trained steps which were kept; 0 where no hours were spent."""
    attempts = list(attempts)
    spent = sum(account.total for account in attempts)
    return sum(account.gpu_hours.get(Phase.PRODUCTIVE, 0.0) for account in attempts) / spent if spent else 0.0


def _account(attempt: int, of_attempt: list[PhaseInterval], furthest: int) -> Account:
    """The account of an attempt, where earlier ones had trained up to step `furthest`."""
    steps = sorted({step for each in of_attempt for step in (each.line.step, each.last_step) if step is not None})
    first, last = (steps[0], steps[-1]) if steps else (None, None)
    account = Account(attempt, first=first, last=last, why=_why(each.line for each in of_attempt))
    if first is not None and last is not None:
        account.replayed = max(0, min(last, furthest) - first)
    workers = sum({each.line.node: each.line.workers for each in of_attempt}.values())
    for interval in of_attempt:
        for name, share in _split(interval.line.phase, account):
            account.gpu_hours[name] = account.gpu_hours.get(name, 0.0) + share * interval.gpu_hours
            seconds = share * interval.seconds * interval.line.workers / workers
            account.seconds[name] = account.seconds.get(name, 0.0) + seconds
    return account


def _split(phase: Phase, account: Account) -> list[tuple[str, float]]:
    """The phase's name with its share of the time. Productive time is split by the steps that were replayed."""
    if phase is not Phase.PRODUCTIVE or not account.replayed:
        return [(str(phase), 1.0)]
    share = account.replayed / account.steps
    return [(str(Phase.PRODUCTIVE), 1.0 - share), (REPLAY, share)]


def _why(lines: Iterable[Line]) -> str | None:
    """The earliest failure that a node recorded."""
    failures = sorted((line for line in lines if line.why is not None), key=lambda line: line.time)
    return failures[0].why if failures else None
