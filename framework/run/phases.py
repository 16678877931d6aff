"""The ledger of an attempt's phases: what every node spent its time on, one line for each beginning of a phase.

    phases.node-0.jsonl   {"time": 1764165000.1, "attempt": 2, "node": 0, "workers": 8, "phase": "load"}

One file for each node, as appends from several nodes to one file may be lost on NFS. A phase lasts until the next line
of its node. Its worker of local rank 0 writes what training is at, the supervisor what workers cannot know: how long
the job was queued, when they were started, hung, were lost and ended.
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

from framework.run.files import append_line
from framework.run.layout import phases_file, phases_files
from framework.run.worker import is_first_on_node, local_workers, node

log = logging.getLogger(__name__)


class Phase(StrEnum):
    """What a node's workers are at."""

    QUEUE = "queue"
    """Nothing: the job waits for nodes."""
    START = "start"
    """The nodes meet, the processes start and import."""
    INIT = "init"
    """torch.distributed starts, the model is built."""
    LOAD = "load"
    """The checkpoint is loaded."""
    FIRST_BATCH = "first_batch"
    """A stage waits for its first batch."""
    COMPILE = "compile"
    """A stage's first step, which compiles and tunes."""
    PRODUCTIVE = "productive"
    """Steps are trained."""
    CHECKPOINT = "checkpoint"
    """Training waits for a save."""
    EVALUATE = "evaluate"
    """The model is examined."""
    HANG = "hang"
    """No sign of life has come, and nobody has noticed yet."""
    LOST = "lost"
    """An attempt has failed; the next one has not been started."""
    END = "end"
    """The node is given back."""


IDLE = frozenset({Phase.QUEUE, Phase.END})
"""Phases in which the job holds no nodes."""


@dataclass(frozen=True, slots=True)
class Line:
    """At `time` (Unix, s) `phase` began on `node` with its `workers`. `step` is the last step trained by then, where it
    is known; `why` says what a failure was.
    """

    time: float
    attempt: int
    node: int
    workers: int
    phase: Phase
    step: int | None = None
    why: str | None = None

    def __str__(self) -> str:
        fields = {name: getattr(self, name) for name in self.__slots__}
        return json.dumps({name: value for name, value in fields.items() if value is not None})


@dataclass(frozen=True, slots=True)
class PhaseInterval:
    """What `line` began lasted until `end` (Unix, s); `last_step` is the last step trained by then, where known."""

    line: Line
    end: float
    last_step: int | None

    @property
    def seconds(self) -> float:
        """How long it lasted (s)."""
        return self.end - self.line.time

    @property
    def gpu_hours(self) -> float:
        """What it cost: the node's workers, one to a GPU, times hours."""
        return 0.0 if self.line.phase in IDLE else self.line.workers * self.seconds / 3600


class PhaseLedger:
    """Appends the phases of `attempt` on `node` to the ledger in the run's `folder`. `writes=False` keeps it silent."""

    def __init__(self, folder: Path, attempt: int, node: int, workers: int, writes: bool = True) -> None:
        self.path = phases_file(folder, node)
        self.attempt = attempt
        self.node = node
        self.workers = workers
        self.writes = writes

    def begin(self, phase: Phase, step: int | None = None, at: float | None = None, why: str | None = None) -> None:
        """`phase` begins now, or began `at` (Unix, s). A line that the disk refuses is logged: it ends no run."""
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
        """`phase` interrupts the training of steps."""
        self.begin(phase, step)
        yield
        self.begin(Phase.PRODUCTIVE, step)


def worker_ledger(folder: Path, attempt: int) -> PhaseLedger:
    """The ledger as this worker writes it: the first of its node, and no other."""
    return PhaseLedger(folder, attempt, node(), local_workers(), is_first_on_node())


def parse_line(text: str) -> Line | None:
    """The line that `text` holds; None for one that a crash or a full disk has cut."""
    try:
        fields: dict[str, Any] = json.loads(text)
        return Line(**{**fields, "phase": Phase(fields["phase"])})
    except (ValueError, KeyError, TypeError):
        return None


def read_phases(folder: Path) -> dict[int, list[Line]]:
    """The lines of every node of the run in `folder`, in order of time."""
    found = {}
    for path in phases_files(folder):
        lines = [line for text in path.read_text(encoding="utf-8").splitlines() if (line := parse_line(text))]
        if lines:
            found[lines[0].node] = sorted(lines, key=lambda line: line.time)
    return found


def intervals(lines: Iterable[Line], now: float) -> list[PhaseInterval]:
    """What one node's `lines` say it did until `now` (Unix, s). Nothing is known to follow an end."""
    ordered = list(lines)
    found = [PhaseInterval(line, after.time, after.step) for line, after in pairwise(ordered)]
    if ordered and ordered[-1].phase is not Phase.END:
        found.append(PhaseInterval(ordered[-1], max(now, ordered[-1].time), None))
    return found


def last_attempt(folder: Path) -> int:
    """The number of the newest attempt that any node has begun; 0 before the first."""
    return max((line.attempt for lines in read_phases(folder).values() for line in lines), default=0)
