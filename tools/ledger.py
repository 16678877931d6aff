"""Read the ledger of a run: what each attempt trained, and whether every sample was trained exactly once a pass.

python -m tools.ledger RUN                           attempts, streams and changes of the mixture, by stage
python -m tools.ledger RUN --compare OTHER           the first step at which two runs trained different samples
python -m tools.ledger RUN --sample STREAM/NUMBER    the steps, passes and attempts that trained a sample
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from framework.data.stream.address import StreamInfo
from framework.data.stream.ledger import (
    AttemptRows,
    LedgerHeader,
    Rows,
    Tally,
    last_whole_step,
    lineage,
    read_attempts,
    tally,
)
from framework.run.layout import LEDGER

Stages = Mapping[str, Sequence[AttemptRows]]
"""A run's attempts by stage, stages in the order they were trained."""
COUNTS = ("samples", "trained", "quarantined", "distinct", "repeated", "lost", "void")
MAX_NAMED = 8
"""Samples or steps that are named where there are more."""


@dataclass(frozen=True, slots=True)
class StreamRows:
    """The rows of one attempt for one stream, in order of steps.

    The newest weights descend from the first `valid` of them; a later attempt resumed before the others.
    """

    header: LedgerHeader
    entry: StreamInfo
    rows: Rows
    valid: int


class LedgerError(ValueError):
    """A ledger that cannot be read, or a sample that does not exist. The message names the file and the remedy."""


def main(arguments: list[str] | None = None) -> int:
    """Prints the report. Returns 1 when samples were repeated or lost, and when runs differ or cannot be read."""
    parser = argparse.ArgumentParser(prog="python -m tools.ledger", description="Read the ledger of a run.")
    parser.add_argument("run", type=Path, help="the run's folder")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--compare", type=Path, metavar="OTHER", help="another run's folder")
    what.add_argument("--sample", metavar="STREAM/NUMBER", help="a sample, by its stream and its number in it")
    options = parser.parse_args(arguments)
    try:
        stages = read(options.run)
        if options.compare is not None:
            return _compare({str(options.run): stages, str(options.compare): read(options.compare)})
        if options.sample is not None:
            return _trace(stages, options.sample)
        return max([_report(stage, attempts) for stage, attempts in stages.items()])
    except LedgerError as error:
        print(error, file=sys.stderr)
        return 1


def read(run: Path) -> Stages:
    """Returns the ledger of the run in the folder `run`. Raises `LedgerError` when it cannot be read."""
    folder = run / LEDGER
    try:
        stages = read_attempts(folder)
    except (OSError, ValueError) as error:
        raise LedgerError(str(error)) from error
    return dict(sorted(stages.items(), key=lambda stage: min(_first_step(attempt) for attempt in stage[1])))


def rows_by_stream(attempts: Sequence[AttemptRows]) -> Iterator[StreamRows]:
    """Yields the rows of each attempt at a stage for each stream."""
    for attempt, valid in lineage(attempts):
        for number, entry in enumerate(attempt.header.streams):
            places = np.flatnonzero(attempt.rows["stream"] == number)
            before = int(np.searchsorted(places, len(valid)))  # rows are in order of steps: valid ones come first
            yield StreamRows(attempt.header, entry, attempt.rows[places], before)


def _first_step(attempt: AttemptRows) -> float:
    return int(attempt.rows["step"][0]) if len(attempt.rows) else np.inf


# The report


def _report(stage: str, attempts: Sequence[AttemptRows]) -> int:
    """Prints a stage's attempts, changes, streams and faults. Returns 1 when there are faults."""
    print(f"stage {stage}")
    print(_table(["attempt", "ranks", "steps", "samples", "void"], _attempts(attempts)))
    for number, change in changes(attempts):
        print(f"attempt {number}: {change}")
    tallies = tally(attempts)
    print(_table(["stream", *COUNTS], ([t.stream, *(getattr(t, name) for name in COUNTS)] for t in tallies)))
    for stream, times in how_often(attempts).items():
        listed = ", ".join(f"{_times(often)} {samples:,}" for often, samples in times.items())
        print(f"{stream}, samples by times trained: {listed}")
    faults = [*_repeated_or_lost(tallies), *_incomplete(attempts)]
    print("\n".join(faults or ["nothing repeated, nothing lost"]), end="\n\n")
    return 1 if faults else 0


def _attempts(attempts: Sequence[AttemptRows]) -> Iterator[list[Any]]:
    for attempt, valid in lineage(attempts):
        steps = attempt.rows["step"]
        steps_text = f"{steps[0]}-{steps[-1]}" if len(steps) else "none"
        yield [attempt.header.attempt, attempt.header.world, steps_text, len(steps), len(steps) - len(valid)]


def changes(attempts: Sequence[AttemptRows]) -> Iterator[tuple[int, str]]:
    """Yields every change of the mixture, with the number of the attempt that introduced it."""
    before = attempts[0].header
    for attempt in attempts:
        header = attempt.header
        yield from ((header.attempt, change) for change in header.changes)
        if header.global_batch != before.global_batch:
            yield header.attempt, f"a step has {header.global_batch} samples instead of {before.global_batch}"
        had = {entry.name: entry.share for entry in before.streams}
        for entry in header.streams:
            share = had.get(entry.name, entry.share)
            if abs(share - entry.share) > 1e-9:
                yield header.attempt, f"stream {entry.name} has a share of {entry.share:.3f} instead of {share:.3f}"
        before = header


def how_often(attempts: Sequence[AttemptRows]) -> dict[str, dict[int, int]]:
    """Returns {stream: {times: how many of its samples the lineage trained that often}}.

    A stream whose data or order changed is counted separately from then on, since its numbers mean other samples.
    """
    versions: dict[tuple[str, str], list[StreamRows]] = {}
    for part in rows_by_stream(attempts):
        versions.setdefault((part.entry.name, part.entry.fingerprint), []).append(part)
    counts_of_name = Counter(name for name, _ in versions)
    often = {}
    for (name, fingerprint), parts in versions.items():
        rows = np.concatenate([part.rows[: part.valid] for part in parts])
        _, counts = np.unique(rows["sample"][rows["refused"] == 0], return_counts=True)
        times, samples = np.unique(counts, return_counts=True)
        never = {0: parts[0].entry.samples - len(counts)}
        title = name if counts_of_name[name] == 1 else f"{name} ({fingerprint})"
        often[title] = never | dict(zip(times.tolist(), samples.tolist(), strict=True))
    return often


def _times(often: int) -> str:
    return {0: "never", 1: "once", 2: "twice"}.get(often, f"{often} times")


def _repeated_or_lost(tallies: Iterable[Tally]) -> Iterator[str]:
    for one in tallies:
        if one.repeated:
            yield f"FAULT: stream {one.stream}: {one.repeated} samples were repeated within a pass"
        if one.lost:
            yield f"FAULT: stream {one.stream}: {one.lost} samples are missing from a pass"


def _incomplete(attempts: Sequence[AttemptRows]) -> Iterator[str]:
    """Yields a fault for steps of the lineage that lack samples, except the last: a killed rank may not record it."""
    lacking: list[int] = []
    after = None
    for attempt, valid in lineage(attempts):
        steps, counts = np.unique(valid["step"], return_counts=True)
        if not len(steps):
            continue
        lacking += [] if after is None else range(after, int(steps[0]))
        whole = np.zeros(int(steps[-1] - steps[0]) + 1, dtype=bool)
        whole[steps - steps[0]] = counts >= attempt.header.global_batch
        lacking += (np.flatnonzero(~whole) + steps[0]).tolist()
        after = int(steps[-1]) + 1
    lacking = [step for step in lacking if step + 1 != after]
    if lacking:
        yield f"FAULT: {len(lacking)} steps lack samples: {_listed(map(str, lacking))}; copy the files of all ranks"


# Two runs, and one sample


def _compare(runs: Mapping[str, Stages]) -> int:
    """Prints the first step at which two runs trained different samples. Returns 1 when there is one."""
    one, other = runs.values()
    prints = [_fingerprints(stages) for stages in (one, other)]
    unlike = sorted(key for key in prints[0].keys() & prints[1].keys() if prints[0][key] != prints[1][key])
    for stage, stream in unlike:
        print(f"stage {stage}: stream {stream} has other data or another order in each run: its numbers do not compare")
    names = sorted(prints[0].keys() | prints[1].keys())
    last = min(max(map(last_whole_step, stages.values())) for stages in (one, other))
    first, second = (_until(_keys(stages, names), last) for stages in (one, other))
    step = _first_difference(first, second)
    if step is None:
        print(f"the same samples up to step {last}")
        return 1 if unlike else 0
    print(f"step {step} is the first at which the runs trained different samples")
    here = [Counter(_sample(key, names) for key in keys[keys[:, 0] >> 32 == step].tolist()) for keys in (first, second)]
    for run, only in zip(runs, (here[0] - here[1], here[1] - here[0]), strict=True):
        print(f"  only {run}: {_listed(only.elements())}")
    return 1


def _fingerprints(stages: Stages) -> dict[tuple[str, str], list[str]]:
    """Returns {(stage, stream): the fingerprints that its data and order had}."""
    fingerprints: dict[tuple[str, str], list[str]] = {}
    for stage, attempts in stages.items():
        for entry in (entry for attempt in attempts for entry in attempt.header.streams):
            prints = fingerprints.setdefault((stage, entry.name), [])
            prints += [] if entry.fingerprint in prints else [entry.fingerprint]
    return fingerprints


def _keys(stages: Stages, names: list[tuple[str, str]]) -> npt.NDArray[np.uint64]:
    """Returns the lineage's samples as sorted numbers `(n, 2)` that depend neither on ranks nor on attempts: step,
    stage and stream (their place in `names`) and pass; sample and whether it was quarantined.
    """
    parts = [np.empty((0, 2), dtype=np.uint64)]
    for stage, attempts in stages.items():
        for part in rows_by_stream(attempts):
            rows = part.rows[: part.valid]
            place = np.uint64(names.index((stage, part.entry.name)) << 16)
            when = rows["step"].astype(np.uint64) << np.uint64(32) | place | rows["turn"]
            parts.append(np.stack([when, rows["sample"] << np.uint64(1) | rows["refused"]], axis=1))
    keys = np.concatenate(parts)
    return keys[np.lexsort((keys[:, 1], keys[:, 0]))]


def _sample(key: list[int], names: list[tuple[str, str]]) -> str:
    stage, stream = names[key[0] >> 16 & 0xFFFF]
    quarantined = ", quarantined" if key[1] & 1 else ""
    return f"{stream}/{key[1] >> 1} (stage {stage}, pass {key[0] & 0xFFFF}{quarantined})"


def _until(keys: npt.NDArray[np.uint64], last: int) -> npt.NDArray[np.uint64]:
    return keys[: np.searchsorted(keys[:, 0], np.uint64((last + 1) << 32))]


def _first_difference(first: npt.NDArray[np.uint64], second: npt.NDArray[np.uint64]) -> int | None:
    length = min(len(first), len(second))
    differs = np.flatnonzero((first[:length] != second[:length]).any(axis=1))
    place = int(differs[0]) if len(differs) else length
    return min((int(keys[place, 0]) >> 32 for keys in (first, second) if place < len(keys)), default=None)


def _trace(stages: Stages, sample: str) -> int:
    """Prints where one sample was trained."""
    stream, _, number = sample.rpartition("/")
    parts = [part for attempts in stages.values() for part in rows_by_stream(attempts) if part.entry.name == stream]
    if not parts:
        known = sorted({entry.name for a in stages.values() for attempt in a for entry in attempt.header.streams})
        raise LedgerError(
            f"--sample {sample}: no stream {stream!r} was trained; give STREAM/NUMBER with a stream of {known}"
        )
    most = max(part.entry.samples for part in parts)
    if not (number.isdecimal() and int(number) < most):
        raise LedgerError(
            f"--sample {sample}: {number!r} is not a sample of {stream}; give a number from 0 to {most - 1}"
        )
    if len({part.entry.fingerprint for part in parts}) > 1:
        print(f"stream {stream} had different data or orders: a number is another sample in each")
    table = _table(["stage", "attempt", "step", "pass", "was", "order"], _occurrences(parts, int(number)))
    print(table if "\n" in table else f"{sample} was never trained")
    return 0


def _occurrences(parts: Iterable[StreamRows], number: int) -> Iterator[list[Any]]:
    for part in parts:
        for place in np.flatnonzero(part.rows["sample"] == number).tolist():
            row = part.rows[place]
            was = ("quarantined" if row["refused"] else "trained") + (", void" if place >= part.valid else "")
            where = [part.header.stage, part.header.attempt, str(row["step"]), str(row["turn"])]
            yield [*where, was, part.entry.fingerprint]


# Words


def _table(header: list[str], rows: Iterable[list[Any]]) -> str:
    """Returns rows in columns, the first aligned left and the others right."""
    cells = [header, *([cell if isinstance(cell, str) else f"{cell:,}" for cell in row] for row in rows)]
    first, *others = (max(map(len, column)) for column in zip(*cells, strict=True))
    return "\n".join(
        "  ".join([row[0].ljust(first), *(cell.rjust(width) for cell, width in zip(row[1:], others, strict=True))])
        for row in cells
    )


def _listed(items: Iterable[str]) -> str:
    """Returns the names of the first items, and how many more there are."""
    names = list(items)
    return ", ".join(names[:MAX_NAMED] or ["nothing"]) + (
        f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    )


if __name__ == "__main__":
    sys.exit(main())
