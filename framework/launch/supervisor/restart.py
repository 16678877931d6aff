"""Whether a failed attempt is followed by another one, when, and what the scheduler is told otherwise."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from framework.launch.supervisor.failure import Failure, Kind
from framework.run.files import append_line
from framework.run.layout import CHECKPOINTS, FAILURES_FILE, committed_steps

log = logging.getLogger(__name__)

DONE = 0
STOP = 78
"""Exit code: people must look at this; do not requeue (EX_CONFIG in sysexits.h). Python, srun and shells do not
end with it by themselves, as they do with 1 or 2 where a file system is away for a while.
"""
REQUEUE = 75
"""Exit code: requeue the job (EX_TEMPFAIL in sysexits.h)."""
TOLD = 143
"""Exit code: ended because it was told to (128 + SIGTERM); who told knows what is next."""
DAY_S = 86400.0
ELSEWHERE = frozenset({Kind.HARDWARE, Kind.HANG})
"""What may be over on another node."""


@dataclass(frozen=True, slots=True)
class Ended:
    """A failed attempt in the run's history. `began_at` and `committed` are the steps of the newest checkpoint when it
    began and when it failed.
    """

    attempt: int
    time: float
    kind: Kind
    node: int
    detail: str
    began_at: int
    committed: int

    @property
    def progressed(self) -> bool:
        """Whether it left the run further than it found it."""
        return self.committed > self.began_at


@dataclass(frozen=True, slots=True)
class Verdict:
    """Another attempt after `after_s` seconds, or, with `code`, the end. `why` is for people."""

    why: str
    after_s: float = 0.0
    code: int | None = None


@dataclass(frozen=True, slots=True)
class RestartPolicy:
    """At most `restarts` in a day; at most `max_attempts_without_progress` attempts in a row that commit no checkpoint,
    more than a checkpoint that cannot be loaded takes to be passed over. The first restart comes at once, later ones of
    fruitless attempts after `back_off_s` seconds, which doubles each time up to `max_back_off_s`.
    """

    restarts: int = 100
    max_attempts_without_progress: int = 6
    back_off_s: float = 5.0
    max_back_off_s: float = 300.0

    def judge(self, history: Sequence[Ended]) -> Verdict:
        """What follows the last of `history`, which is not empty."""
        last = history[-1]
        if last.kind is Kind.RECIPE:
            return Verdict("the recipe cannot run; mend it", code=STOP)
        if last.kind is Kind.WALL_TIME:
            return Verdict("the job's time was up", code=REQUEUE)
        today = sum(ended.time > last.time - DAY_S for ended in history)
        if today > self.restarts:
            return Verdict(f"{today} failures in a day, where {self.restarts} restarts are allowed", code=STOP)
        row = _fruitless(history)
        if len(row) >= self.max_attempts_without_progress:
            elsewhere = all(ended.kind in ELSEWHERE for ended in row)
            again = len(row) < 2 * self.max_attempts_without_progress
            why = f"{len(row)} attempts in a row committed no checkpoint after step {last.committed}"
            return Verdict(why, code=REQUEUE if elsewhere and again else STOP)
        after = min(self.max_back_off_s, self.back_off_s * 2.0 ** (len(row) - 2)) if len(row) > 1 else 0.0
        return Verdict(f"restart {today} of {self.restarts} of this day", after)


def _fruitless(history: Sequence[Ended]) -> list[Ended]:
    row: list[Ended] = []
    for ended in reversed(history):
        if ended.progressed:
            break
        row.append(ended)
    return row


class FailureLedger:
    """`failures.jsonl` in the run's folder: one line for each failed attempt, kept over requeues."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / FAILURES_FILE
        text = self.path.read_text(encoding="utf-8") if self.path.is_file() else ""
        lines = [json.loads(line) for line in text.splitlines() if line.strip()]
        self.history = [Ended(**{**line, "kind": Kind(line["kind"])}) for line in lines]

    def add(self, attempt: int, failure: Failure, began_at: int) -> None:
        """Enter why `attempt` ended, which began at the checkpoint of step `began_at`. A line that the disk refuses is
        logged: it ends no run.
        """
        reached = committed_step(self.folder)
        ended = Ended(attempt, failure.time, failure.kind, failure.node, failure.detail, began_at, reached)
        self.history.append(ended)
        try:
            append_line(self.path, json.dumps(asdict(ended)))
        except OSError as error:
            log.warning("%s: %s", self.path, error)


def committed_step(folder: Path) -> int:
    """The step of the newest committed checkpoint in the run's `folder`; 0 without one."""
    return max((saved.step for saved in committed_steps(folder / CHECKPOINTS)), default=0)
