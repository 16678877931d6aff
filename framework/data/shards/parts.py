"""The parts of the work of writing shards: how it is divided, how one part is written, and how all become one stream.

folder/
    work.json                                          identifies the work, so that no other is mixed in
    part-00000/  shard.00000.mds.zstd ... index.json   one part of the work items
                 part.json                             the part's contents and skipped records
                 statistics.json                       its outlines, see `framework.data.shards.statistics`
    index.json                                         all parts merged, which makes the folder a stream
    manifest.json                                      counts of the whole, skipped records with reasons, schema

A part is written under a name that no other process uses. Renaming it is what finishes it, and succeeds once: a process
that outlived its kill, or a copy of it on another node, can neither undo nor double a finished part.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

from framework.data.shards.record import COLUMNS, SCHEMA_VERSION, encode
from framework.data.shards.statistics import KEY, Statistics, merged, read_statistics
from framework.data.shards.summary import Skipped, Summary
from framework.run.files import sync, write_json, write_text
from framework.scene.check import check_scene
from framework.scene.types import Scene, SceneError

Item = TypeVar("Item")
SHARD_BYTES = 1 << 26
HASHES = ["sha1", "xxh64"]
STATISTICS = "statistics.json"
"""The statistics of a part, in its folder."""
SUMMARY = "part.json"
"""The summary of a part, in its folder."""
WORK = "work.json"
"""What was written, in the folder of all parts."""

Group = tuple[str, int]
"""A split ("" where it is not known) and a number of items: a log."""
Piece = tuple[str, list[Any]]
"""A split and items of it."""


@dataclass(frozen=True)
class Work(Generic[Item]):
    """Scenes to be written, as work items."""

    items: Sequence[Item]
    """The items; they pickle to worker processes."""
    scenes: Callable[[Item], Iterable[Scene]]
    """Yields the scenes of an item; it pickles too. The rest of an item is skipped and listed when it raises
    `SceneError` or `OSError`."""
    dropped: Mapping[str, int] = field(default_factory=dict)
    """What was left out before there were items, by name."""
    groups: Sequence[Group] = ()
    """The items' logs in order, each with its split: a log stays in one part where it fits. Empty: a single one."""
    identity: Mapping[str, Any] = field(default_factory=dict)
    """What else decides which scenes the items become, by name, as JSON. None of it may change in a folder."""
    tasks: Mapping[str, Callable[[Scene], bool]] = field(default_factory=dict)
    """Tasks, each with whether a scene supports it; the summary counts them."""


@dataclass(frozen=True)
class PartJob:
    """What writes parts of some work into a folder. It pickles to other processes and nodes, which share the folder."""

    folder: Path
    """The folder of the parts."""
    parts: Mapping[int, Sequence[Piece]]
    """The parts to write, by number."""
    scenes: Callable[[Any], Iterable[Scene]]
    """See `Work`."""
    tasks: Mapping[str, Callable[[Scene], bool]]
    """See `Work`."""
    shard_bytes: int = SHARD_BYTES
    """The most bytes of a shard before compression."""

    def only(self, number: int) -> PartJob:
        """Returns the job of a single part."""
        return replace(self, parts={number: self.parts[number]})

    def name(self, number: int) -> str:
        """Returns a part as reports name it: its folder, and the items that it is made of."""
        items = [item for _, items in self.parts[number] for item in items]
        return f"{part_folder(self.folder, number).name} ({len(items)} items, {items[0]} to {items[-1]})"

    def attempt(self, number: int) -> str | None:
        """Writes a part. Returns what went wrong, None where nothing did."""
        try:
            self.write(number)
        except Exception as error:  # whatever a dataset's reader or the disk raises: other parts do not depend on it
            return f"{type(error).__name__}: {error}"
        return None

    def write(self, number: int) -> None:
        """Writes a part, unless another process has meanwhile."""
        from streaming import MDSWriter  # takes seconds, which commands that write nothing do not have

        part = part_folder(self.folder, number)
        own = self.folder / f"{part.name}.{socket.gethostname()}.{os.getpid()}.tmp"
        shutil.rmtree(own, ignore_errors=True)
        summary, statistics = Summary(), Statistics()
        with MDSWriter(
            out=str(own), columns=COLUMNS, compression="zstd:3", hashes=HASHES, size_limit=self.shard_bytes
        ) as writer:
            for split, items in self.parts[number]:
                for scene in self._valid(items, summary):
                    writer.write(encode(scene))
                    summary.add(Summary.of(scene, split, self.tasks))
                    statistics.add(scene)
        write_text(own / STATISTICS, json.dumps({KEY: statistics.written()}), durable=False)  # many facts: compact
        write_json(own / SUMMARY, asdict(summary), durable=False)
        for path in own.iterdir():
            sync(path)
        try:
            own.rename(part)
        except OSError:  # a folder with files in it is never replaced
            if not is_written(self.folder, number):
                raise
            shutil.rmtree(own, ignore_errors=True)

    def _valid(self, items: Iterable[Any], summary: Summary) -> Iterator[Scene]:
        """Yields the valid scenes of items; adds the others to `summary` as skipped."""
        for item in items:
            try:
                for scene in self.scenes(item):
                    problems = check_scene(scene)
                    if problems:
                        summary.skipped.append(Skipped(_printable(scene.id), "; ".join(problems)))
                    else:
                        yield scene
            except (SceneError, OSError) as error:
                summary.skipped.append(Skipped(_printable(str(item)), _printable(str(error))))


def divide(work: Work[Any], size: int) -> list[list[Piece]]:
    """Returns the parts of `work`: whole logs in order until there are `size` items or more, and pieces of `size` of
    a longer log.
    """
    parts: list[list[Piece]] = []
    count, start = size, 0
    for split, length in work.groups or [("", len(work.items))]:
        items = list(work.items[start : start + length])
        start += length
        for piece in (items[at : at + size] for at in range(0, length, size)):
            if count >= size:
                parts.append([])
                count = 0
            parts[-1].append((split, piece))
            count += len(piece)
    return parts


def part_folder(folder: Path, number: int) -> Path:
    """Returns the folder of a part of the work in `folder`."""
    return folder / f"part-{number:05d}"


def is_written(folder: Path, number: int) -> bool:
    """Returns whether a part is finished."""
    return (part_folder(folder, number) / SUMMARY).is_file()


def read_summary(folder: Path, number: int) -> Summary:
    """Returns the summary of a finished part."""
    return Summary.read(part_folder(folder, number) / SUMMARY)


def claim(folder: Path, work: Work[Any], part_items: int) -> None:
    """Writes what `folder` is for. Raises `SceneError` that names what differs from what it already is for."""
    digest = hashlib.sha256(repr(list(work.items)).encode()).hexdigest()
    facts = {"items": len(work.items), "part_items": part_items, "schema": SCHEMA_VERSION, "sha256": digest}
    claimed = json.loads(json.dumps({**facts, **work.identity}))
    path = folder / WORK
    if path.is_file():
        there = json.loads(path.read_text())
        if differences := _differences(there, claimed):
            raise SceneError(
                f"{folder}: holds the shards of other work: {'; '.join(differences)}; write to another folder, or "
                "remove this one"
            )
    else:
        write_json(path, claimed)


def _differences(there: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Returns what differs, by name. The items' hash is named only where nothing else explains it."""
    names = [name for name in {**there, **now} if there.get(name) != now.get(name)]
    named = [name for name in names if name != "sha256"]
    if names and not named:
        return ["its items are others"]
    return [f"{name}: {there.get(name, 'absent')} there, {now.get(name, 'absent')} now" for name in named]


def merge(folder: Path, numbers: Sequence[int], summary: Summary) -> None:
    """Makes a stream of the finished parts `numbers`: one index over all, each shard named by its path. It is written
    last, and atomically.
    """
    shards: list[dict[str, Any]] = []
    for number in numbers:
        part = part_folder(folder, number)
        for shard in json.loads((part / "index.json").read_text())["shards"]:
            for kind in ("raw_data", "zip_data"):
                if shard.get(kind):
                    shard[kind]["basename"] = f"{part.name}/{shard[kind]['basename']}"
            shards.append(shard)
    statistics = merged(read_statistics(part_folder(folder, number) / STATISTICS) for number in numbers)
    write_json(folder / "manifest.json", asdict(summary), durable=False)
    write_text(folder / "index.json", json.dumps(index_of(shards, statistics)), durable=False)


def index_of(shards: Sequence[Any], statistics: Statistics | None) -> dict[str, Any]:
    """The index of a stream of `shards`. Its statistics are the last key, which is read without the shards."""
    return {"version": 2, "shards": shards} | ({} if statistics is None else {KEY: statistics.written()})


def remove_unfinished(folder: Path) -> None:
    """Removes what killed processes left. No process may be writing parts of `folder`."""
    for stale in folder.glob("part-*.tmp"):
        shutil.rmtree(stale, ignore_errors=True)


def _printable(text: str) -> str:
    """Returns `text` with an escape for each half of a character, which no report could show."""
    return text.encode(errors="backslashreplace").decode()
