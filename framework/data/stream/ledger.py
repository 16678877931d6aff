"""The ledger of what was trained: every sample of every committed step, appended by each rank, sixteen bytes a sample.

    ledger/broad.attempt-0001.rank-00000.json    the mixture: streams, their sizes and shares, what changed
    ledger/broad.attempt-0001.rank-00000.bin     rows of `ROW`

An attempt that resumes at step n makes void what earlier attempts trained from n on: `lineage` is what remains, the
samples that the newest weights have seen.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from framework.data.stream.address import Address, Entry
from framework.run.files import write_json

ROW = np.dtype([("step", "<u4"), ("turn", "<u2"), ("stream", "u1"), ("refused", "u1"), ("sample", "<u8")])
"""The optimizer step (counted over the curriculum), the pass over the stream, the stream, whether the sample was
refused instead of trained, and its number in the stream."""
Rows = npt.NDArray[np.void]


@dataclass(frozen=True, slots=True)
class Heading:
    """What the rows of one rank of one attempt at a stage are about. `changes` tells how the mixture differs from the
    one that the checkpoint was trained on.
    """

    stage: str
    attempt: int
    rank: int
    world: int
    global_batch: int
    lanes: int
    streams: list[Entry]
    changes: list[str] = field(default_factory=list)


class Ledger:
    """Appends to `folder`. Nothing is created before the first row: an attempt without a step leaves no trace."""

    def __init__(self, folder: Path, heading: Heading) -> None:
        stem = f"{heading.stage}.attempt-{heading.attempt:04d}.rank-{heading.rank:05d}"
        self.heading = heading
        self.path = folder / f"{stem}.bin"
        self.file: int | None = None

    def append(self, step: int, samples: Sequence[Address], refused: frozenset[Address] = frozenset()) -> None:
        """Write down the samples of a step that is trained; one write, so that a crash leaves whole rows or none."""
        if self.file is None:
            self.file = self._open()
        rows = np.zeros(len(samples), dtype=ROW)
        rows["step"] = step
        rows["stream"], rows["turn"], rows["sample"] = np.array(samples, dtype=np.int64).reshape(-1, 3).T
        if refused:
            rows["refused"] = [sample in refused for sample in samples]
        os.write(self.file, rows.tobytes())

    def flush(self) -> None:
        """To the disk: what a checkpoint relies on must outlive the node."""
        if self.file is not None:
            os.fsync(self.file)

    def _open(self) -> int:
        write_json(self.path.with_suffix(".json"), asdict(self.heading))
        return os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)


@dataclass(frozen=True)
class Attempt:
    """What one attempt at a stage trained, over all its ranks, in order of steps."""

    heading: Heading
    rows: Rows


def read_attempts(folder: Path) -> dict[str, list[Attempt]]:
    """All attempts by stage, in order. Raises `FileNotFoundError` for a folder without a ledger, `ValueError` for a
    heading that is none.
    """
    files: dict[tuple[str, int], list[Path]] = {}
    for path in sorted(folder.glob("*.bin")):
        found = re.fullmatch(r"(.+)\.attempt-(\d+)\.rank-\d+", path.stem)
        if found:
            files.setdefault((found[1], int(found[2])), []).append(path)
    if not files:
        raise FileNotFoundError(f"{folder}: no ledger here; give the folder of a run that has trained a step")
    stages: dict[str, list[Attempt]] = {}
    for (stage, _), paths in sorted(files.items(), key=lambda item: item[0][1]):
        stages.setdefault(stage, []).append(_read(paths))
    return stages


def lineage(attempts: Sequence[Attempt]) -> Iterator[tuple[Attempt, Rows]]:
    """Of each attempt at a stage, the rows that the newest weights descend from."""
    for index, attempt in enumerate(attempts):
        resumed = [int(later.rows["step"].min()) for later in attempts[index + 1 :] if len(later.rows)]
        yield attempt, attempt.rows[attempt.rows["step"] < min(resumed, default=np.iinfo(np.uint32).max)]


def last_whole_step(attempts: Sequence[Attempt]) -> int:
    """The last step of the lineage that all ranks have written down: of those that are killed, some come first."""
    last = 0
    for attempt, rows in lineage(attempts):
        steps, counts = np.unique(rows["step"], return_counts=True)
        last = max(last, int(steps[counts >= attempt.heading.global_batch].max(initial=0)))
    return last


@dataclass(frozen=True, slots=True)
class Tally:
    """How often the samples of a stream were trained in the lineage.

    `repeated` samples came twice or more in one pass over the stream, `lost` ones not at all although their turn was:
    both are zero, or something is broken. `void` were trained by attempts that a later one went back behind.
    """

    stage: str
    stream: str
    samples: int
    trained: int
    refused: int
    distinct: int
    repeated: int
    lost: int
    void: int


def tally(attempts: Sequence[Attempt]) -> list[Tally]:
    """The tally of every stream of a stage."""
    kept = list(lineage(attempts))
    entries = {entry.name: entry for attempt in attempts for entry in attempt.heading.streams}
    last = last_whole_step(attempts)
    return [_tally_of(entry, attempts, kept, last) for entry in entries.values()]


def _tally_of(entry: Entry, attempts: Sequence[Attempt], kept: list[tuple[Attempt, Rows]], last: int) -> Tally:
    mine = [_of_stream(rows, attempt.heading, entry.name) for attempt, rows in kept]
    void = sum(len(_of_stream(a.rows, a.heading, entry.name)) for a in attempts) - sum(map(len, mine))
    same = [_of_stream(r, a.heading, entry.name) for a, r in kept if entry in _undated(a.heading, entry)]
    rows, alike = np.concatenate(mine), np.concatenate(same)
    alike = alike[alike["step"] <= last]
    keys = _distinct(alike["turn"].astype(np.uint64) << np.uint64(48) | alike["sample"])
    refused = int(rows["refused"].sum())
    return Tally(
        stage=attempts[0].heading.stage,
        stream=entry.name,
        samples=entry.samples,
        trained=len(rows) - refused,
        refused=refused,
        distinct=len(_distinct(rows["sample"])),
        repeated=len(alike) - len(keys),
        lost=_lost(entry, attempts[-1].heading.lanes, len(alike), keys),
        void=void,
    )


def _distinct(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """As `np.unique`, whose table of hashes takes ten times as long."""
    values = np.sort(values)
    return values[np.diff(values, prepend=values[:1] + 1) != 0]


def _lost(entry: Entry, lanes: int, trained: int, keys: npt.NDArray[np.uint64]) -> int:
    """How many samples the passes lack. All lanes are equally far; a pass ends earlier in those that are shorter."""
    lengths = np.diff(entry.samples * np.arange(lanes + 1) // lanes)
    taken, last = trained // lanes, int(keys[-1] >> np.uint64(48)) if len(keys) else -1
    begins = np.searchsorted(keys, np.arange(last + 2, dtype=np.uint64) << np.uint64(48))
    due = [int(np.clip(taken - turn * lengths, 0, lengths).sum()) for turn in range(last + 1)]
    return sum(max(0, count - found) for count, found in zip(due, np.diff(begins).tolist(), strict=True))


def _undated(heading: Heading, entry: Entry) -> list[Entry]:
    """The heading's entry of the same stream in the same order, whatever its share was."""
    return [entry for other in heading.streams if (other.name, other.fingerprint) == (entry.name, entry.fingerprint)]


def first_difference(one: Sequence[Attempt], other: Sequence[Attempt]) -> int | None:
    """The first step at which two runs' lineages trained different samples at a stage; None when there is none.

    Steps that only one of them has reached do not count.
    """
    first, second = _by_step(one), _by_step(other)
    last = min(last_whole_step(one), last_whole_step(other))
    first, second = first[first["step"] <= last], second[second["step"] <= last]
    if len(first) == len(second) and bool((first == second).all()):
        return None
    length = min(len(first), len(second))
    differs = np.flatnonzero(first[:length] != second[:length])
    place = int(differs[0]) if len(differs) else length
    return min(int(rows["step"][place]) for rows in (first, second) if place < len(rows))


def _by_step(attempts: Sequence[Attempt]) -> Rows:
    """The lineage's rows in an order that the split over ranks does not change."""
    rows = np.concatenate([rows for _, rows in lineage(attempts)])
    return rows[np.lexsort((rows["sample"], rows["turn"], rows["stream"], rows["step"]))]


def _of_stream(rows: Rows, heading: Heading, name: str) -> Rows:
    numbers = [index for index, entry in enumerate(heading.streams) if entry.name == name]
    return rows[np.isin(rows["stream"], numbers)]


def _read(paths: Sequence[Path]) -> Attempt:
    parts = []
    for path in paths:
        data = path.read_bytes()
        parts.append(np.frombuffer(data[: len(data) // ROW.itemsize * ROW.itemsize], dtype=ROW))
    heading = _heading(paths[0].with_suffix(".json"))
    rows = np.concatenate(parts)
    return Attempt(heading, rows[np.argsort(rows["step"], kind="stable")])


def _heading(path: Path) -> Heading:
    try:
        facts = json.loads(path.read_text())
        return Heading(**facts | {"streams": [Entry(**entry) for entry in facts["streams"]]})
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path}: is missing: the heading of the rows beside it; copy it again") from error
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}: is no ledger heading; copy another rank's of that attempt") from error
