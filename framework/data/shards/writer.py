"""Writes scenes as MDS shards: in parallel parts, resumable, and visible only when complete.

folder/
    work.json                                          identifies the work, so that no other is mixed in
    part-00000/  shard.00000.mds.zstd ... index.json   one part of the work items
    part-00000.json                                    written last: the part's contents and skipped records
    index.json                                         all parts merged, which makes the folder a stream; with their
                                                       statistics, see `framework.data.shards.statistics`
    manifest.json                                      counts by kind and dataset, skipped records with reasons, schema
"""

from __future__ import annotations

import hashlib
import json
import logging
import multiprocessing
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from framework.data.shards.record import COLUMNS, SCHEMA_VERSION, encode
from framework.data.shards.statistics import KEY, Statistics, merged, read_statistics
from framework.run.console import progress_bar
from framework.run.files import write_json
from framework.run.lock import try_lock
from framework.scene.check import check_scene
from framework.scene.types import Scene, SceneError

log = logging.getLogger(__name__)

Item = TypeVar("Item")
SHARD_BYTES = 1 << 26
PART_ITEMS, PARTS = 32, 64
"""The least number of items of a part, and the number of parts of large work."""
WAIT_S = 3600.0
"""Seconds that a process waits for another that writes the same shards."""
HASHES = ["sha1", "xxh64"]
PARTS_OF_A_SCENE = ("cameras", "lidar", "radar", "boxes", "history", "future", "surroundings", "thought")
"""Fields of a scene that a record may lack, and that are counted."""
STATISTICS = "statistics.json"
"""The statistics of a part, in its folder."""


@dataclass(frozen=True, slots=True)
class Skipped:
    """A record that was not written."""

    source: str
    """The work item or scene it came from."""
    reason: str
    """What is wrong with it."""


@dataclass(slots=True)
class Summary:
    """The contents of a folder of shards."""

    records: int = 0
    """Records written."""
    kinds: dict[str, int] = field(default_factory=dict)
    """Records by scenario kind."""
    datasets: dict[str, int] = field(default_factory=dict)
    """Records by dataset."""
    skipped: list[Skipped] = field(default_factory=list)
    """Records not written."""
    unmapped: dict[str, int] = field(default_factory=dict)
    """Annotations of classes missing from `CLASSES`, by class."""
    dropped: dict[str, int] = field(default_factory=dict)
    """What else was read and left out, by name: sensors, frames, boxes without a point."""
    parts: dict[str, int] = field(default_factory=dict)
    """Records that have each of `PARTS_OF_A_SCENE`: which tasks they can serve follows from it."""
    schema: int = SCHEMA_VERSION
    """Version of the records."""

    @classmethod
    def of(cls, scene: Scene) -> Summary:
        """Returns the summary of a single record."""
        unmapped, dropped = (json.loads(scene.provenance.get(name, "{}")) for name in ("unmapped", "dropped"))
        parts = {name: 1 for name in PARTS_OF_A_SCENE if getattr(scene, name) not in (None, ())}
        return cls(1, {scene.kind: 1}, {scene.provenance.get("dataset", "unknown"): 1}, [], unmapped, dropped, parts)

    @classmethod
    def read(cls, path: Path) -> Summary:
        """Returns the summary in a JSON file, a part's or a folder's manifest."""
        facts = json.loads(path.read_text())
        return cls(**facts | {"skipped": [Skipped(**item) for item in facts["skipped"]]})

    def add(self, other: Summary) -> None:
        """Adds another part's counts."""
        self.records += other.records
        self.kinds = dict(Counter(self.kinds) + Counter(other.kinds))
        self.datasets = dict(Counter(self.datasets) + Counter(other.datasets))
        self.skipped += other.skipped
        self.unmapped = dict(Counter(self.unmapped) + Counter(other.unmapped))
        self.dropped = dict(Counter(self.dropped) + Counter(other.dropped))
        self.parts = dict(Counter(self.parts) + Counter(other.parts))

    def __str__(self) -> str:
        kinds = ", ".join(f"{kind} {count}" for kind, count in sorted(self.kinds.items()))
        lines = [f"{self.records} records written ({kinds or 'none'}), {len(self.skipped)} skipped"]
        if self.parts:
            lines.append(f"  scenes with: {', '.join(f'{name} {count}' for name, count in sorted(self.parts.items()))}")
        lines += [f"  skipped {item.source}: {item.reason}" for item in self.skipped]
        if self.unmapped:
            listed = ", ".join(f"{name} {count}" for name, count in sorted(self.unmapped.items()))
            lines.append(f"  annotations without a class of ours: {listed}")
        lines += [f"  left out: {name}: {count}" for name, count in sorted(self.dropped.items())]
        return "\n".join(lines)


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


def write_shards(
    work: Work[Any],
    folder: Path,
    workers: int = 1,
    part_items: int | None = None,
    shard_bytes: int = SHARD_BYTES,
    quiet: bool = False,
) -> Summary:
    """Writes all of `work` to `folder`. Parts that an earlier call finished are kept, unfinished ones written again.

    Raises `SceneError` when `folder` holds the shards of other work, and when no record could be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    size = part_items or max(PART_ITEMS, -(-len(work.items) // PARTS))
    parts = [work.items[i : i + size] for i in range(0, len(work.items), size)]
    _claim(folder, work, size)
    todo = [index for index in range(len(parts)) if not _done(folder, index).is_file()]
    done = len(parts) - len(todo)
    with nullcontext() if quiet else progress_bar(f"writing {folder.name}", len(parts), done) as bar:
        for count, _ in enumerate(_run(work, folder, parts, todo, workers, shard_bytes), start=done + 1):
            if bar is not None:
                bar.update(count, "parts")
    summary = Summary(dropped=dict(work.dropped))
    for index in range(len(parts)):
        summary.add(Summary.read(_done(folder, index)))
    if summary.records == 0:
        raise SceneError(f"{folder}: no record could be written\n{summary}")
    write_json(folder / "manifest.json", asdict(summary), durable=False)
    _merge(folder, len(parts))
    return summary


def write_once(folder: Path, write: Callable[[], Summary]) -> None:
    """Writes the shards of `folder` in one of the processes that call this; the others wait until they are complete.

    The kernel's lock ends with the process that holds it; the next process continues where that one died.
    Raises `SceneError` after `WAIT_S` seconds of waiting.
    """
    index, deadline = folder / "index.json", time.monotonic() + WAIT_S
    if index.is_file():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".lock").open("w") as lock:
        while not try_lock(lock):
            if time.monotonic() > deadline:
                raise SceneError(
                    f"{folder}: another process has been writing it for {WAIT_S:.0f} s; see whether it hangs"
                )
            time.sleep(0.2)
        if not index.is_file():
            log.info("%s", write())


def _run(
    work: Work[Any], folder: Path, parts: Sequence[Sequence[Any]], todo: Sequence[int], workers: int, shard_bytes: int
) -> Iterator[None]:
    if workers <= 1:
        for index in todo:
            _write_part(Work(parts[index], work.scenes), folder, index, shard_bytes)
            yield
        return
    context = multiprocessing.get_context(
        "fork"
    )  # as DataLoader's workers: a fresh interpreter would import torch for 15 s
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        tasks = [pool.submit(_write_part, Work(parts[i], work.scenes), folder, i, shard_bytes) for i in todo]
        for task in as_completed(tasks):
            task.result()
            yield


def _write_part(work: Work[Any], folder: Path, index: int, shard_bytes: int) -> None:
    """Writes one part under a name of this process: a worker that outlived its parent may be writing the same part."""
    from streaming import MDSWriter  # takes seconds, which commands that write nothing do not have

    summary, statistics = Summary(), Statistics()
    own, part = folder / f"part-{index:05d}.{os.getpid()}.tmp", folder / f"part-{index:05d}"
    shutil.rmtree(own, ignore_errors=True)
    with MDSWriter(
        out=str(own), columns=COLUMNS, compression="zstd:3", hashes=HASHES, size_limit=shard_bytes
    ) as writer:
        for item in work.items:
            for scene in _scenes_of(work, item, summary):
                writer.write(encode(scene))
                summary.add(Summary.of(scene))
                statistics.add(scene)
    write_json(own / STATISTICS, {KEY: statistics.written()}, durable=False)
    shutil.rmtree(part, ignore_errors=True)  # a part without its summary is incomplete
    own.rename(part)
    write_json(_done(folder, index), asdict(summary), durable=False)


def _scenes_of(work: Work[Any], item: Any, summary: Summary) -> Iterator[Scene]:
    """Yields the valid scenes of an item; adds the others to `summary` as skipped."""
    try:
        for scene in work.scenes(item):
            problems = check_scene(scene)
            if problems:
                summary.skipped.append(Skipped(_printable(scene.id), "; ".join(problems)))
            else:
                yield scene
    except (SceneError, OSError) as error:
        summary.skipped.append(Skipped(_printable(str(item)), _printable(str(error))))


def _printable(text: str) -> str:
    """Returns `text` with an escape for each half of a character, which no report could show."""
    return text.encode(errors="backslashreplace").decode()


def _claim(folder: Path, work: Work[Any], part_items: int) -> None:
    digest = hashlib.sha256(repr(list(work.items)).encode()).hexdigest()
    claim = {"items": len(work.items), "part_items": part_items, "sha256": digest, "schema": SCHEMA_VERSION}
    path = folder / "work.json"
    if path.is_file() and json.loads(path.read_text()) != claim:
        raise SceneError(f"{folder}: holds the shards of other work; write to another folder or remove it")
    write_json(path, claim, durable=False)
    for stale in folder.glob("*.tmp"):
        shutil.rmtree(stale, ignore_errors=True)


def _done(folder: Path, index: int) -> Path:
    return folder / f"part-{index:05d}.json"


def _merge(folder: Path, parts: int) -> None:
    """Writes one index over all parts, each shard named by its path; last, and atomically."""
    shards: list[dict[str, Any]] = []
    for index in range(parts):
        name = f"part-{index:05d}"
        for shard in json.loads((folder / name / "index.json").read_text())["shards"]:
            for kind in ("raw_data", "zip_data"):
                if shard.get(kind):
                    shard[kind]["basename"] = f"{name}/{shard[kind]['basename']}"
            shards.append(shard)
    statistics = merged(read_statistics(folder / f"part-{index:05d}" / STATISTICS) for index in range(parts))
    write_json(folder / "index.json", index_of(shards, statistics), durable=False)


def index_of(shards: Sequence[Any], statistics: Statistics | None) -> dict[str, Any]:
    """The index of a stream of `shards`. Its statistics are the last key, which is read without the shards."""
    return {"version": 2, "shards": shards} | ({} if statistics is None else {KEY: statistics.written()})
