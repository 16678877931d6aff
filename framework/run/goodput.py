"""What a run's GPU hours went into, by attempt and phase, and the share that trained steps which were kept."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from framework.run.phases import Line, Phase, PhaseInterval, intervals, read_phases

REPLAY = "replay"
"""The name of the hours in which steps were trained that an earlier attempt had trained, and lost."""


@dataclass
class Account:
    """One attempt, over all nodes: seconds (of a mean GPU) and GPU hours by phase, `REPLAY` taken out of what was
    productive. It trained the steps after `first` up to `last`, of which it replayed `replayed`; `why` says what ended
    it, where that was a failure.
    """

    attempt: int
    seconds: dict[str, float] = field(default_factory=dict)
    gpu_hours: dict[str, float] = field(default_factory=dict)
    first: int | None = None
    last: int | None = None
    replayed: int = 0
    why: str | None = None

    @property
    def total(self) -> float:
        """GPU hours."""
        return sum(self.gpu_hours.values())

    @property
    def steps(self) -> int:
        """How many steps it trained."""
        return 0 if self.first is None or self.last is None else self.last - self.first


def accounts(folder: Path, now: float) -> list[Account]:
    """The attempts of the run in `folder` until `now` (Unix, s), in order."""
    nodes = read_phases(folder)
    by_attempt: dict[int, list[PhaseInterval]] = defaultdict(list)
    for lines in nodes.values():
        for span in intervals(lines, now):
            by_attempt[span.line.attempt].append(span)
    found, furthest = [], 0
    for attempt, parts in sorted(by_attempt.items()):
        account = _account(attempt, parts, furthest)
        furthest = max(furthest, account.last or 0)
        found.append(account)
    return found


def goodput(attempts: Iterable[Account]) -> float:
    """The share of the GPU hours in which steps were trained that were kept; 0 where nothing was spent."""
    listed = list(attempts)
    spent = sum(account.total for account in listed)
    return sum(account.gpu_hours.get(Phase.PRODUCTIVE, 0.0) for account in listed) / spent if spent else 0.0


def _account(attempt: int, parts: list[PhaseInterval], furthest: int) -> Account:
    steps = sorted({step for span in parts for step in (span.line.step, span.last_step) if step is not None})
    first, last = (steps[0], steps[-1]) if steps else (None, None)
    account = Account(attempt, first=first, last=last, why=_why(span.line for span in parts))
    if first is not None and last is not None:
        account.replayed = max(0, min(last, furthest) - first)
    workers = sum({span.line.node: span.line.workers for span in parts}.values())
    for span in parts:
        for name, share in _split(span.line.phase, account):
            account.gpu_hours[name] = account.gpu_hours.get(name, 0.0) + share * span.gpu_hours
            seconds = share * span.seconds * span.line.workers / workers
            account.seconds[name] = account.seconds.get(name, 0.0) + seconds
    return account


def _split(phase: Phase, account: Account) -> list[tuple[str, float]]:
    """A phase under its name; what was productive is shared out by the steps that were trained anew."""
    if phase is not Phase.PRODUCTIVE or not account.replayed:
        return [(str(phase), 1.0)]
    share = account.replayed / account.steps
    return [(str(Phase.PRODUCTIVE), 1.0 - share), (REPLAY, share)]


def _why(lines: Iterable[Line]) -> str | None:
    """What the first node that knew it said of the attempt's end."""
    known = sorted((line for line in lines if line.why is not None), key=lambda line: line.time)
    return known[0].why if known else None
