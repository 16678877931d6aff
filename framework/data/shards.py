"""Writing scenes as MDS shards: in parallel parts, resumable, nothing visible before it is whole.

    folder/
        part-00000/  shard.00000.mds.zstd ... index.json   one part of the work items
        part-00000.json                                    written last: what the part holds and what it skipped
        index.json                                         all parts merged: the folder is a stream from here on
        manifest.json                                      counts by kind and source, skipped records with reasons, schema
"""

from __future__ import annotations

import json
import multiprocessing
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from streaming import MDSWriter
from tqdm import tqdm

from framework.data.record import COLUMNS, SCHEMA_VERSION, encode
from framework.scene.check import check_scene
from framework.scene.types import Scene, SceneError

Item = TypeVar("Item")
SHARD_BYTES = 1 << 26
HASHES = ["sha1", "xxh64"]


@dataclass(frozen=True, slots=True)
class Skipped:
    """A record that was not written: the work item or scene it came from, and why."""

    source: str
    reason: str


@dataclass(slots=True)
class Summary:
    """What a folder of shards holds."""

    records: int = 0
    kinds: dict[str, int] = field(default_factory=dict)
    datasets: dict[str, int] = field(default_factory=dict)
    skipped: list[Skipped] = field(default_factory=list)
    schema: int = SCHEMA_VERSION

    def add(self, other: Summary) -> None:
        """Add another part's counts."""
        self.records += other.records
        self.kinds = dict(Counter(self.kinds) + Counter(other.kinds))
        self.datasets = dict(Counter(self.datasets) + Counter(other.datasets))
        self.skipped += other.skipped

    def __str__(self) -> str:
        kinds = ", ".join(f"{kind} {count}" for kind, count in sorted(self.kinds.items()))
        lines = [f"{self.records} records written ({kinds or 'none'}), {len(self.skipped)} skipped"]
        return "\n".join(lines + [f"  skipped {item.source}: {item.reason}" for item in self.skipped])


@dataclass(frozen=True)
class Work(Generic[Item]):
    """Work items and how each becomes scenes; both must pickle to worker processes.

    `scenes(item)` may raise `SceneError` or `OSError`: the rest of that item is skipped and listed.
    """

    items: Sequence[Item]
    scenes: Callable[[Item], Iterable[Scene]]


def write_shards(
    work: Work[Any], folder: Path, workers: int = 1, part_items: int = 256, shard_bytes: int = SHARD_BYTES, quiet: bool = False
) -> Summary:
    """Write all of `work` to `folder`; parts that a former call finished are kept, an unfinished one is written anew.

    Raises `SceneError` when `folder` already holds another work's shards, or when not a single record could be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    parts = [work.items[i : i + part_items] for i in range(0, len(work.items), part_items)]
    _claim(folder, work, part_items)
    todo = [index for index in range(len(parts)) if not _done(folder, index).is_file()]
    with tqdm(total=len(parts), initial=len(parts) - len(todo), desc=folder.name, unit="part", disable=quiet) as bar:
        for _ in _run(work, folder, parts, todo, workers, shard_bytes):
            bar.update()
    summary = Summary()
    for index in range(len(parts)):
        summary.add(_read_summary(_done(folder, index)))
    if summary.records == 0:
        raise SceneError(f"{folder}: no record could be written\n{summary}")
    (folder / "manifest.json").write_text(json.dumps(asdict(summary), indent=1))
    _merge(folder, len(parts))
    return summary


def _run(
    work: Work[Any], folder: Path, parts: Sequence[Sequence[Any]], todo: Sequence[int], workers: int, shard_bytes: int
) -> Iterator[None]:
    if workers <= 1:
        for index in todo:
            yield _write_part(Work(parts[index], work.scenes), folder, index, shard_bytes)
        return
    context = multiprocessing.get_context("spawn")  # torch and its threads may be alive in this process
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        tasks = [pool.submit(_write_part, Work(parts[i], work.scenes), folder, i, shard_bytes) for i in todo]
        for task in as_completed(tasks):
            yield task.result()


def _write_part(work: Work[Any], folder: Path, index: int, shard_bytes: int) -> None:
    part, summary = folder / f"part-{index:05d}", Summary()
    shutil.rmtree(part, ignore_errors=True)  # a part without its summary was cut short
    with MDSWriter(out=str(part), columns=COLUMNS, compression="zstd:3", hashes=HASHES, size_limit=shard_bytes) as writer:
        for item in work.items:
            for scene in _scenes_of(work, item, summary):
                writer.write(encode(scene))
                summary.add(Summary(1, {scene.kind: 1}, {scene.provenance.get("dataset", "unknown"): 1}))
    temporary = _done(folder, index).with_suffix(".tmp")
    temporary.write_text(json.dumps(asdict(summary)))
    temporary.replace(_done(folder, index))


def _scenes_of(work: Work[Any], item: Any, summary: Summary) -> Iterator[Scene]:
    """The valid scenes of an item; what is wrong with the others goes to `summary`."""
    try:
        for scene in work.scenes(item):
            problems = check_scene(scene)
            if problems:
                summary.skipped.append(Skipped(scene.id, "; ".join(problems)))
            else:
                yield scene
    except (SceneError, OSError) as error:
        summary.skipped.append(Skipped(str(item), str(error)))


def _claim(folder: Path, work: Work[Any], part_items: int) -> None:
    claim = {"items": len(work.items), "part_items": part_items, "first": str(work.items[0]) if work.items else ""}
    path = folder / "work.json"
    if path.is_file() and json.loads(path.read_text()) != claim:
        raise SceneError(f"{folder}: holds the shards of other work ({path.read_text()}); write to another folder or remove it")
    path.write_text(json.dumps(claim))


def _done(folder: Path, index: int) -> Path:
    return folder / f"part-{index:05d}.json"


def _read_summary(path: Path) -> Summary:
    facts = json.loads(path.read_text())
    skipped = [Skipped(**item) for item in facts["skipped"]]
    return Summary(facts["records"], facts["kinds"], facts["datasets"], skipped, facts["schema"])


def _merge(folder: Path, parts: int) -> None:
    """One index over all parts, each shard named by its path; written last and at once."""
    shards: list[dict[str, Any]] = []
    for index in range(parts):
        name = f"part-{index:05d}"
        for shard in json.loads((folder / name / "index.json").read_text())["shards"]:
            for kind in ("raw_data", "zip_data"):
                if shard.get(kind):
                    shard[kind]["basename"] = f"{name}/{shard[kind]['basename']}"
            shards.append(shard)
    temporary = folder / "index.json.tmp"
    temporary.write_text(json.dumps({"version": 2, "shards": shards}))
    temporary.replace(folder / "index.json")
