"""The restart policy: whether another attempt follows a failed one, when, and what the scheduler is told otherwise."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from framework.launch.exit_codes import ExitCode
from framework.launch.supervisor.failure import Failure, Kind
from framework.recipe.component import component
from framework.recipe.ranges import Count, PositiveCount, Seconds, Wait
from framework.run.files import append_line, read_records
from framework.run.layout import CHECKPOINTS, FAILURES_FILE, committed_steps

log = logging.getLogger(__name__)

DAY_S = 86400.0
NODE_FAULTS = frozenset({Kind.HARDWARE, Kind.HANG})
"""Failures that other nodes may not have."""
INTERRUPTIONS = (Kind.WALL_TIME, Kind.PREEMPTION)
"""Ends for which the scheduler is the reason. They use up no restarts."""


@dataclass(frozen=True, slots=True)
class FailedAttempt:
    """A failed attempt, as `failures.jsonl` keeps it."""

    attempt: int
    """Its number."""
    time: float
    """When it failed (Unix, s)."""
    kind: Kind
    """What broke."""
    node: int
    """The node that broke."""
    detail: str
    """The line that says so."""
    began_at: int
    """The step of the newest checkpoint when it started."""
    committed: int
    """The step of the newest checkpoint when it failed."""
    job: str = ""
    """Slurm's number of the job; empty elsewhere."""

    @property
    def progressed(self) -> bool:
        """Whether it committed a checkpoint."""
        return self.committed > self.began_at


@dataclass(frozen=True, slots=True)
class Decision:
    """What follows a failed attempt."""

    why: str
    """The reason, for people."""
    after_s: float = 0.0
    """Delay of the next attempt (s)."""
    code: ExitCode | None = None
    """The job's exit code if no attempt follows."""


@component
@dataclass(frozen=True, slots=True)
class RestartPolicy:
    """When a failed attempt is followed by another."""

    restarts: Count = 100
    """Restarts within a day before a person must look."""
    max_attempts_without_progress: PositiveCount = 6
    """Consecutive attempts that may commit no checkpoint. More than it takes to pass over checkpoints that do not
    load.
    """
    back_off_s: Wait = 5.0
    """Delay (s) from the second such attempt on, doubled with each; the first restart is immediate."""
    max_back_off_s: Wait = 300.0
    """Longest delay (s)."""
    node_timeout_s: Seconds = 600.0
    """How long the nodes wait for a missing one (s) before the job is requeued."""

    def decide(self, history: Sequence[FailedAttempt]) -> Decision:
        """Return what follows the last attempt of `history`, which is not empty."""
        last = history[-1]
        if last.kind is Kind.RECIPE:
            return Decision("the recipe cannot run; fix it", code=ExitCode.STOP)
        if last.kind is Kind.WALL_TIME:
            return self._next_slice(history)
        if last.kind is Kind.PREEMPTION:
            return self._after_preemption(history)
        failures = [failed for failed in history if failed.kind not in INTERRUPTIONS]
        today = sum(failed.time > last.time - DAY_S for failed in failures)
        if today > self.restarts:
            return Decision(f"{today} failures in a day, {self.restarts} restarts are allowed", code=ExitCode.STOP)
        stalled = [failed for failed in _without_progress(history) if failed.kind not in INTERRUPTIONS]
        if len(stalled) >= self.max_attempts_without_progress:
            node_faults = all(failed.kind in NODE_FAULTS for failed in stalled)
            once_more = len(stalled) < 2 * self.max_attempts_without_progress
            why = f"{len(stalled)} attempts in a row committed no checkpoint after step {last.committed}"
            return Decision(why, code=ExitCode.REQUEUE if node_faults and once_more else ExitCode.STOP)
        return Decision(f"restart {today} of {self.restarts} today", self._delay(len(stalled)))

    def _after_preemption(self, history: Sequence[FailedAttempt]) -> Decision:
        """Preemptions use up nothing, however many there are: they say nothing about the run."""
        stalled = [failed for failed in _without_progress(history) if failed.kind is Kind.PREEMPTION]
        return Decision("no failure: its workers were told to end", self._delay(len(stalled)))

    def _delay(self, stalled: int) -> float:
        """The delay (s) after `stalled` attempts without progress."""
        doublings = min(stalled - 2, 64)
        return min(self.max_back_off_s, self.back_off_s * 2.0**doublings) if stalled > 1 else 0.0

    def _next_slice(self, history: Sequence[FailedAttempt]) -> Decision:
        """Slices use up no restarts; but a run that saves in none of them would go on for ever."""
        stalled = [failed for failed in _without_progress(history) if failed.kind is Kind.WALL_TIME]
        if len(stalled) < self.max_attempts_without_progress:
            return Decision("the job's wall time is up", code=ExitCode.REQUEUE)
        why = f"{len(stalled)} slices of wall time committed no checkpoint after step {history[-1].committed}"
        return Decision(f"{why}; raise launch.notice_s or launch.minutes, or save more often", code=ExitCode.STOP)


def _without_progress(history: Sequence[FailedAttempt]) -> list[FailedAttempt]:
    """The newest attempts that committed no checkpoint, newest first."""
    stalled: list[FailedAttempt] = []
    for failed in reversed(history):
        if failed.progressed:
            break
        stalled.append(failed)
    return stalled


class FailureLedger:
    """`failures.jsonl` in the run's folder: one line for each failed attempt, kept over requeues.

    Args:
        folder: The run's folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / FAILURES_FILE
        parsed = [_parse(record) for record in read_records(self.path)]
        self.history = [failed for failed in parsed if failed is not None]

    def add(self, attempt: int, failure: Failure, began_at: int) -> None:
        """Append why `attempt` failed, which started at the checkpoint of step `began_at`. If the disk refuses the
        line, the error is logged and the run continues.
        """
        reached = committed_step(self.folder)
        job, when = os.environ.get("SLURM_JOB_ID", ""), failure.time
        failed = FailedAttempt(attempt, when, failure.kind, failure.node, failure.detail, began_at, reached, job)
        self.history.append(failed)
        try:
            append_line(self.path, json.dumps(asdict(failed)))
        except OSError as error:
            log.warning("%s: %s", self.path, error)


def _parse(record: dict[str, Any]) -> FailedAttempt | None:
    """The failed attempt that a line describes; None where it is none."""
    try:
        failed = FailedAttempt(**{**record, "kind": Kind(record["kind"])})
        if not all(isinstance(each, int | float) for each in (failed.time, failed.began_at, failed.committed)):
            raise TypeError("time and steps are numbers")
        return failed
    except (ValueError, TypeError, KeyError):
        log.warning("%s: ignored a line that is no failed attempt: %.200s", FAILURES_FILE, record)
        return None


def committed_step(folder: Path) -> int:
    """Return the step of the newest committed checkpoint in the run's `folder`; 0 without one."""
    return max((saved.step for saved in committed_steps(folder / CHECKPOINTS)), default=0)
