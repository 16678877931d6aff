"""The ledger of trained samples: each rank appends every sample of every committed step, sixteen bytes a sample.

    ledger/broad.attempt-0001.rank-00000.json    the mixture: streams, their sizes and shares, what changed
    ledger/broad.attempt-0001.rank-00000.bin     rows of `ROW`

An attempt that resumes at step n voids what earlier attempts trained from n on. What remains is the `lineage`: the
samples that the newest weights have seen.
"""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from framework.data.stream.address import Address, StreamInfo
from framework.run.files import write_json
from framework.run.layout import file_stem

ROW = np.dtype([("step", "<u4"), ("turn", "<u2"), ("stream", "u1"), ("refused", "u1"), ("sample", "<u8")])
"""The optimizer step (counted over the curriculum), the pass over the stream, the stream, whether the sample was
quarantined instead of trained, and its number in the stream."""
Rows = npt.NDArray[np.void]


@dataclass(frozen=True, slots=True)
class LedgerHeader:
    """The description of the rows that one rank writes in one attempt at a stage."""

    stage: str
    """The stage's name."""
    attempt: int
    """The run's attempt, counted from 1."""
    rank: int
    """The data-parallel rank."""
    world: int
    """Data-parallel ranks."""
    global_batch: int
    """Samples of a step over all ranks."""
    lanes: int
    """Lanes of the streams' order."""
    streams: list[StreamInfo]
    """The mixture's streams, in order."""
    changes: list[str] = field(default_factory=list)
    """How the mixture differs from the one that the checkpoint was trained on, in words."""


class Ledger:
    """Appends a rank's rows to a ledger file. Creates it with the first row: an attempt without a step leaves no trace.

    Args:
        folder: The run's folder of ledgers.
        header: What the rows are about.
    """

    def __init__(self, folder: Path, header: LedgerHeader) -> None:
        stem = f"{file_stem(header.stage)}.attempt-{header.attempt:04d}.rank-{header.rank:05d}"
        self.header = header
        self.path = folder / f"{stem}.bin"
        self.file: int | None = None

    def append(self, step: int, samples: Sequence[Address], quarantined: frozenset[Address] = frozenset()) -> None:
        """Appends the samples of a trained step in one write, so that a crash leaves whole rows or none."""
        if self.file is None:
            self.file = self._open()
        rows = np.zeros(len(samples), dtype=ROW)
        rows["step"] = step
        rows["stream"], rows["turn"], rows["sample"] = np.array(samples, dtype=np.int64).reshape(-1, 3).T
        if quarantined:
            rows["refused"] = [sample in quarantined for sample in samples]
        content = rows.tobytes()
        if os.write(self.file, content) < len(content):
            raise OSError(errno.ENOSPC, "the disk is full; a step of the ledger is cut", str(self.path))

    def flush(self) -> None:
        """Flushes to disk: what a checkpoint relies on must outlive the node."""
        if self.file is not None:
            os.fsync(self.file)

    def _open(self) -> int:
        write_json(self.path.with_suffix(".json"), asdict(self.header))
        file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        size = os.fstat(file).st_size
        os.ftruncate(file, size - size % ROW.itemsize)  # a crash may have cut the last row
        return file


@dataclass(frozen=True)
class AttemptRows:
    """The samples that one attempt at a stage trained, over all its ranks."""

    header: LedgerHeader
    """That of its first rank."""
    rows: Rows
    """In order of steps."""


def read_attempts(folder: Path) -> dict[str, list[AttemptRows]]:
    """Returns all attempts by stage, in order. Raises `FileNotFoundError` for a folder without a ledger, `ValueError`
    for an invalid header.
    """
    files: dict[tuple[str, int], list[Path]] = {}
    for path in sorted(folder.glob("*.bin")):
        match = re.fullmatch(r"(.+)\.attempt-(\d+)\.rank-\d+", path.stem)
        if match:
            files.setdefault((match[1], int(match[2])), []).append(path)
    if not files:
        raise FileNotFoundError(f"{folder}: no ledger; give the folder of a run that has trained a step")
    stages: dict[str, list[AttemptRows]] = {}
    for (stage, _), paths in sorted(files.items(), key=lambda item: item[0][1]):
        stages.setdefault(stage, []).append(_read(paths))
    return stages


def lineage(attempts: Sequence[AttemptRows]) -> Iterator[tuple[AttemptRows, Rows]]:
    """Yields each attempt at a stage with those of its rows that the newest weights descend from."""
    for index, attempt in enumerate(attempts):
        resumed = [int(later.rows["step"].min()) for later in attempts[index + 1 :] if len(later.rows)]
        yield attempt, attempt.rows[attempt.rows["step"] < min(resumed, default=np.iinfo(np.uint32).max)]


def last_whole_step(attempts: Sequence[AttemptRows]) -> int:
    """Returns the last step of the lineage that all ranks have recorded: when a run is killed, some ranks die first."""
    last = 0
    for attempt, rows in lineage(attempts):
        steps, counts = np.unique(rows["step"], return_counts=True)
        last = max(last, int(steps[counts >= attempt.header.global_batch].max(initial=0)))
    return last


@dataclass(frozen=True, slots=True)
class Tally:
    """How often the samples of a stream were trained in the lineage."""

    stage: str
    """The stage's name."""
    stream: str
    """The stream's name."""
    samples: int
    """Samples of one pass."""
    trained: int
    """Rows that were trained."""
    quarantined: int
    """Rows that were quarantined instead."""
    distinct: int
    """Samples that occur at least once."""
    repeated: int
    """Rows in excess of one a sample and pass; not zero means a fault."""
    lost: int
    """Samples missing from a pass although their turn has come; not zero means a fault."""
    void: int
    """Rows of steps that a later attempt trained again from an earlier checkpoint."""


def tally(attempts: Sequence[AttemptRows]) -> list[Tally]:
    """Returns the tally of every stream of a stage."""
    rows = list(lineage(attempts))
    entries = {entry.name: entry for attempt in attempts for entry in attempt.header.streams}
    last = last_whole_step(attempts)
    return [_tally_of(entry, attempts, rows, last) for entry in entries.values()]


def _tally_of(
    entry: StreamInfo, attempts: Sequence[AttemptRows], line: list[tuple[AttemptRows, Rows]], last: int
) -> Tally:
    mine = [_of_stream(rows, attempt.header, entry.name) for attempt, rows in line]
    void = sum(len(_of_stream(a.rows, a.header, entry.name)) for a in attempts) - sum(map(len, mine))
    same = [_of_stream(r, a.header, entry.name) for a, r in line if entry in _same_order(a.header, entry)]
    rows, alike = np.concatenate(mine), np.concatenate(same)
    alike = alike[alike["step"] <= last]
    keys = _distinct(alike["turn"].astype(np.uint64) << np.uint64(48) | alike["sample"])
    quarantined = int(rows["refused"].sum())
    return Tally(
        stage=attempts[0].header.stage,
        stream=entry.name,
        samples=entry.samples,
        trained=len(rows) - quarantined,
        quarantined=quarantined,
        distinct=len(_distinct(rows["sample"])),
        repeated=len(alike) - len(keys),
        lost=_lost(entry, attempts[-1].header.lanes, len(alike), keys),
        void=void,
    )


def _distinct(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Returns the sorted distinct values; `np.unique`, with its hash table, takes ten times as long."""
    values = np.sort(values)
    return values[np.diff(values, prepend=values[:1] + 1) != 0]


def _lost(entry: StreamInfo, lanes: int, trained: int, keys: npt.NDArray[np.uint64]) -> int:
    """Returns how many samples the passes lack. Lanes advance equally, so that a pass ends earlier in shorter ones."""
    lengths = np.diff(entry.samples * np.arange(lanes + 1) // lanes)
    taken, last = trained // lanes, int(keys[-1] >> np.uint64(48)) if len(keys) else -1
    starts = np.searchsorted(keys, np.arange(last + 2, dtype=np.uint64) << np.uint64(48))
    due = [int(np.clip(taken - turn * lengths, 0, lengths).sum()) for turn in range(last + 1)]
    return sum(max(0, count - present) for count, present in zip(due, np.diff(starts).tolist(), strict=True))


def _same_order(header: LedgerHeader, entry: StreamInfo) -> list[StreamInfo]:
    """Returns the header's entry of the same stream in the same order, whatever its share was."""
    return [entry for other in header.streams if (other.name, other.fingerprint) == (entry.name, entry.fingerprint)]


def first_difference(one: Sequence[AttemptRows], other: Sequence[AttemptRows]) -> int | None:
    """Returns the first step at which two runs' lineages trained different samples at a stage; None without any.

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


def _by_step(attempts: Sequence[AttemptRows]) -> Rows:
    """Returns the lineage's rows in an order that does not depend on the ranks."""
    rows = np.concatenate([rows for _, rows in lineage(attempts)])
    return rows[np.lexsort((rows["sample"], rows["turn"], rows["stream"], rows["step"]))]


def _of_stream(rows: Rows, header: LedgerHeader, name: str) -> Rows:
    numbers = [index for index, entry in enumerate(header.streams) if entry.name == name]
    return rows[np.isin(rows["stream"], numbers)]


def _read(paths: Sequence[Path]) -> AttemptRows:
    parts = []
    for path in paths:
        data = path.read_bytes()
        parts.append(np.frombuffer(data[: len(data) // ROW.itemsize * ROW.itemsize], dtype=ROW))
    header = _header(paths[0].with_suffix(".json"))
    rows = np.concatenate(parts)
    return AttemptRows(header, rows[np.argsort(rows["step"], kind="stable")])


def _header(path: Path) -> LedgerHeader:
    try:
        facts = json.loads(path.read_text())
        return LedgerHeader(**facts | {"streams": [StreamInfo(**entry) for entry in facts["streams"]]})
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{path}: is missing, the header of the rows in the .bin file; copy it again"
        ) from error
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path}: {error}: is not a ledger header; copy that of another rank of the attempt"
        ) from error
