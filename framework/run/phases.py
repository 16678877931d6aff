"""The ledger of phases: what every node spends its time on, one line for each start of a phase.

    phases.node-0.jsonl   {"time": 1764165000.1, "attempt": 2, "node": 0, "workers": 8, "phase": "load"}

There is one file per node, because appends from several nodes to one file can be lost on NFS. A phase lasts until the
next line of its node. The worker of local rank 0 writes the phases of training. The supervisor writes those that
workers cannot know: the time in the queue, their start, hang, loss and end.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise
from pathlib import Path
from typing import Any

from framework.run.files import append_line, read_records
from framework.run.layout import phases_file, phases_files
from framework.run.worker import is_first_on_node, local_workers, node

log = logging.getLogger(__name__)


class Phase(StrEnum):
    """What a node's workers are doing."""

    QUEUE = "queue"
    """The job waits for nodes."""
    START = "start"
    """The nodes rendezvous; the processes start and import."""
    INIT = "init"
    """torch.distributed starts; the model is built."""
    LOAD = "load"
    """The checkpoint is loaded."""
    FIRST_BATCH = "first_batch"
    """A stage waits for its first batch."""
    COMPILE = "compile"
    """A stage's first step, which compiles and autotunes."""
    PRODUCTIVE = "productive"
    """Steps are trained."""
    CHECKPOINT = "checkpoint"
    """Training waits for a save."""
    EVALUATE = "evaluate"
    """The model is evaluated."""
    HANG = "hang"
    """The workers make no progress; the supervisor has not noticed yet."""
    LOST = "lost"
    """The attempt has failed; the next has not started."""
    END = "end"
    """The node is released."""


IDLE = frozenset({Phase.QUEUE, Phase.END})
"""Phases in which the job holds no nodes."""


@dataclass(frozen=True, slots=True)
class Line:
    """The start of a phase on a node."""

    time: float
    """When it started (Unix, s)."""
    attempt: int
    """The attempt's number."""
    node: int
    """The node's number in the job."""
    workers: int
    """Workers on the node, one per GPU."""
    phase: Phase
    """The phase that starts."""
    step: int | None = None
    """The last step trained by then, where it is known."""
    why: str | None = None
    """The cause, where the phase follows a failure."""

    def __str__(self) -> str:
        fields = {name: getattr(self, name) for name in self.__slots__}
        return json.dumps({name: value for name, value in fields.items() if value is not None})


@dataclass(frozen=True, slots=True)
class PhaseInterval:
    """A phase from its start to its end on a node."""

    line: Line
    """The start of the phase."""
    end: float
    """When it ended (Unix, s)."""
    last_step: int | None
    """The last step trained by the end, where it is known."""

    @property
    def seconds(self) -> float:
        """The duration (s)."""
        return self.end - self.line.time

    @property
    def gpu_hours(self) -> float:
        """The cost: the node's workers, one per GPU, times hours; 0 for phases without nodes."""
        return 0.0 if self.line.phase in IDLE else self.line.workers * self.seconds / 3600


class PhaseLedger:
    """Appends the phases of an attempt on a node to the ledger in the run's folder.

    Args:
        folder: The run's folder.
        attempt: The attempt's number.
        node: The node's number.
        workers: Workers on the node.
        writes: False makes every call a no-op, for workers other than local rank 0.
    """

    def __init__(self, folder: Path, attempt: int, node: int, workers: int, writes: bool = True) -> None:
        self.path = phases_file(folder, node)
        self.attempt = attempt
        self.node = node
        self.workers = workers
        self.writes = writes

    def begin(self, phase: Phase, step: int | None = None, at: float | None = None, why: str | None = None) -> None:
        """Record that `phase` begins now, or began `at` (Unix, s). A failed write is only logged."""
        if not self.writes:
            return
        now = time.time() if at is None else at
        line = Line(round(now, 3), self.attempt, self.node, self.workers, phase, step, why)
        try:
            append_line(self.path, str(line))
        except OSError as error:
            log.warning("%s: %s; lost: %s", self.path, error, line)

    @contextmanager
    def during(self, phase: Phase, step: int) -> Iterator[None]:
        """Record `phase` for the duration of the block, and productive training after it."""
        self.begin(phase, step)
        yield
        self.begin(Phase.PRODUCTIVE, step)


def phase_ledger(folder: Path, attempt: int) -> PhaseLedger:
    """This worker's ledger, which only the first worker of a node writes."""
    return PhaseLedger(folder, attempt, node(), local_workers(), is_first_on_node())


def parse_line(text: str) -> Line | None:
    """The parsed line; None for one that a crash or a full disk has truncated."""
    try:
        return _line(json.loads(text))
    except (ValueError, RecursionError):
        return None


def _line(fields: Any) -> Line | None:
    try:
        return Line(**{**fields, "phase": Phase(fields["phase"])})
    except (ValueError, KeyError, TypeError):
        return None


def read_phases(folder: Path) -> dict[int, list[Line]]:
    """The lines of the run in `folder` by node, in order of time."""
    by_node = {}
    for path in phases_files(folder):
        lines = [line for fields in read_records(path) if (line := _line(fields))]
        if lines:
            by_node[lines[0].node] = sorted(lines, key=lambda line: line.time)
    return by_node


def intervals(lines: Iterable[Line], now: float) -> list[PhaseInterval]:
    """The phases of one node's `lines`, the last until `now` (Unix, s) unless it is an end."""
    ordered = list(lines)
    phases = [PhaseInterval(line, after.time, after.step) for line, after in pairwise(ordered)]
    if ordered and ordered[-1].phase is not Phase.END:
        phases.append(PhaseInterval(ordered[-1], max(now, ordered[-1].time), None))
    return phases


def last_attempt(folder: Path) -> int:
    """The number of the newest attempt that any node has recorded; 0 before the first."""
    return max((line.attempt for lines in read_phases(folder).values() for line in lines), default=0)
