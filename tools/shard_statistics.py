"""What is in shards: their records opened one by one, counted and measured."""

from __future__ import annotations

import contextlib
import itertools
import json
import multiprocessing
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from streaming.base.compression import decompress
from streaming.base.format.mds.reader import MDSReader
from streaming.base.hashing import get_hash

from framework.data.shards.record import decode
from framework.data.shards.writer import Summary
from framework.run.console import progress_bar
from framework.scene.types import Camera, FloatArray, Scene, SceneError

Entry = dict[str, Any]
"""A shard as the index describes it."""
Job = TypeVar("Job")
Result = TypeVar("Result")
SENSORS = ("cameras", "lidar", "radar", "perception")
LABELS = ("boxes", "history", "future", "surroundings", "questions", "caption", "thought")
COUNTS = {
    "columns": "bytes",
    "kinds": "records",
    "datasets": "records",
    "present": "records",
    "boxes": "boxes",
    "questions": "questions",
    "images": "cameras",
    "frames": "cameras",
    "futures": "records",
}
"""What is counted, and of what these are."""
MEASURES = (
    "boxes a record",
    "questions a record",
    "LiDAR points",
    "radar returns",
    "history speed (m/s)",
    "history acceleration (m/s^2)",
    "future speed (m/s)",
    "future acceleration (m/s^2)",
    "box speed (m/s)",
)
"""What is measured: of each record, or of each state or box in it."""


class OpenShard:
    """The records of one shard of `folder`. Raises `SceneError` unless its file is as the index describes it."""

    def __init__(self, folder: Path, entry: Entry) -> None:
        self.path = folder / stored_file(entry)["basename"]
        self.samples = int(entry["samples"])
        stored = _proven(self.path, stored_file(entry))
        try:
            self.reader = MDSReader.from_json("", None, entry)
            self.reader.validate(allow_unsafe_types=False)
            self.data = decompress(entry["compression"], stored) if entry["zip_data"] else stored
            self.offsets = np.frombuffer(self.data, np.uint32, count=self.samples + 1, offset=4)
        except Exception as error:  # every compression raises its own kind
            raise SceneError(f"{self.path}: {error}: is no shard of ours; convert or write it again") from error

    def cells(self, place: int) -> dict[str, bytes]:
        """A record's columns as they are stored. MDS: the sizes of those without a fixed one (uint32), the values."""
        data = self.data[self.offsets[place] : self.offsets[place + 1]]
        free = iter(np.frombuffer(data, np.uint32, count=self.reader.column_sizes.count(None)).tolist())
        sizes = [next(free) if size is None else size for size in self.reader.column_sizes]
        ends = list(itertools.accumulate(sizes, initial=len(data) - sum(sizes)))
        return {
            name: data[begin:end]
            for name, (begin, end) in zip(self.reader.column_names, itertools.pairwise(ends), strict=True)
        }

    def scene(self, place: int) -> Scene:
        """The scene of a record. Raises `SceneError` naming shard and record when it cannot be decoded."""
        try:
            return decode(self.reader.decode_sample(self.data[self.offsets[place] : self.offsets[place + 1]]))
        except (ValueError, IndexError, KeyError, TypeError) as error:
            raise SceneError(f"{self.path} record {place}: {error}") from error


def places_of(folder: Path, entries: Sequence[Entry], numbers: Iterable[int]) -> Iterator[tuple[int, int]]:
    """The shard of each record and its place there."""
    ends = np.cumsum([entry["samples"] for entry in entries])
    total = int(ends[-1]) if len(ends) else 0
    for number in numbers:
        if not 0 <= number < total:
            raise SceneError(f"{folder}: has no record {number}; it holds {total}, counted from 0")
        shard = int(np.searchsorted(ends, number, side="right"))
        yield shard, number - int(ends[shard]) + int(entries[shard]["samples"])


def read_index(folder: Path) -> list[Entry]:
    """The shards of `folder`. Raises `SceneError` that names the index which is missing or damaged."""
    path = folder / "index.json"
    if not path.is_file():
        raise SceneError(f"{path}: is missing: not a folder of shards, or one that is not whole; write or convert it")
    try:
        shards: list[Entry] = json.loads(path.read_text())["shards"]
        for shard in shards:
            MDSReader.from_json("", None, shard)
    except (ValueError, KeyError, TypeError) as error:
        raise SceneError(f"{path}: {error!r}: is damaged; fetch it again, or remove it and write again") from error
    return shards


def read_manifest(folder: Path) -> Summary:
    """What `folder` says it holds. Raises `SceneError` that names the manifest which is missing or damaged."""
    path = folder / "manifest.json"
    try:
        return Summary.read(path)
    except OSError as error:
        raise SceneError(f"{path}: {error.strerror}: the folder is not whole; write or convert it again") from error
    except (ValueError, KeyError, TypeError) as error:
        raise SceneError(f"{path}: {error!r}: is damaged; remove it and write again") from error


def stored_file(entry: Entry) -> dict[str, Any]:
    """The file that holds a shard."""
    stored: dict[str, Any] = entry["zip_data"] or entry["raw_data"]
    return stored


def _proven(path: Path, stored: dict[str, Any]) -> bytes:
    """What is in a shard's file. Raises `SceneError` unless its size and hashes are the index's."""
    if not path.is_file():
        raise SceneError(f"{path}: is missing; fetch or write it again")
    data = path.read_bytes()
    if len(data) != stored["bytes"]:
        raise SceneError(f"{path}: {len(data)} bytes where the index counts {stored['bytes']}; fetch or write it again")
    wrong = [name for name, value in stored["hashes"].items() if get_hash(name, data) != value]
    if wrong:
        raise SceneError(
            f"{path}: {' and '.join(wrong)} differ from the index's: it has changed; fetch or write it again"
        )
    return data


def each_of(jobs: Sequence[Job], work: Callable[[Job], Result], workers: int, what: str) -> Iterator[Result]:
    """`work` of each job, in order, by so many processes; at a terminal with a bar."""
    with progress_bar(what, len(jobs)) as bar, contextlib.ExitStack() as stack:
        results: Iterator[Result] = map(work, jobs)
        if workers > 1:
            fork = multiprocessing.get_context("fork")  # a fresh interpreter would import torch for 15 s
            pool = stack.enter_context(ProcessPoolExecutor(workers, mp_context=fork))
            results = pool.map(work, jobs)
        try:
            for done, result in enumerate(results, start=1):
                if bar is not None:
                    bar.update(done, "shards")
                yield result
        except BrokenProcessPool as error:
            raise SceneError(f"{what}: a process died, likely for want of memory; give fewer --workers") from error


@dataclass
class Statistics:
    """Counts and measures of `sampled` records."""

    sampled: int = 0
    counts: dict[str, Counter[str]] = field(default_factory=lambda: {name: Counter() for name in COUNTS})
    measures: dict[str, list[FloatArray]] = field(default_factory=lambda: {name: [] for name in MEASURES})

    @classmethod
    def of(cls, scene: Scene, sizes: Mapping[str, int]) -> Statistics:
        """One record's, whose columns take so many bytes."""
        statistics = cls(sampled=1)
        statistics.counts["columns"].update(sizes)
        for name, item in _counted(scene):
            statistics.counts[name][item] += 1
        for name, values in _measured(scene):
            statistics.measures[name].append(np.atleast_1d(np.asarray(values, dtype=np.float64)))
        return statistics

    def add(self, other: Statistics) -> None:
        """Add those of other records."""
        self.sampled += other.sampled
        for name in COUNTS:
            self.counts[name].update(other.counts[name])
        for measure in MEASURES:
            self.measures[measure] += other.measures[measure]

    def facts(self) -> dict[str, Any]:
        """As JSON can hold it: {count: {item: number}}, {"measures": {measure: its figures}}."""
        counts = {name: dict(sorted(values.items())) for name, values in self.counts.items()}
        return {"sampled": self.sampled, **counts, "measures": {m: _figures(v) for m, v in self.measures.items()}}


def _counted(scene: Scene) -> Iterator[tuple[str, str]]:
    yield "kinds", scene.kind
    yield "datasets", scene.provenance.get("dataset", "unknown")
    for name in (*SENSORS, *LABELS):
        if getattr(scene, name) not in (None, ()):
            yield "present", name
    yield from (("boxes", label) for label in (scene.boxes.labels if scene.boxes else ()))
    yield from (("questions", question.topic) for question in scene.questions)
    for camera in scene.cameras:
        yield "present", f"camera {camera.name}"
        yield "images", f"{camera.width} x {camera.height}"
        yield "frames", _frames(camera)
    if scene.future is not None:
        steps, rate = len(scene.future.states), scene.future.rate_hz
        yield "futures", f"{steps / rate:g} s at {rate:g} Hz"


def _frames(camera: Camera) -> str:
    count = len(camera.times)
    if camera.clip is not None:
        return f"clip of {count}"
    return "still" if count == 1 else f"{count} images"


def _measured(scene: Scene) -> Iterator[tuple[str, Any]]:
    yield "questions a record", len(scene.questions)
    if scene.lidar is not None:
        yield "LiDAR points", len(scene.lidar.points)
    if scene.radar is not None:
        yield "radar returns", len(scene.radar.returns)
    if scene.boxes is not None:
        yield "boxes a record", len(scene.boxes)
        yield "box speed (m/s)", np.hypot(scene.boxes.values[:, 7], scene.boxes.values[:, 8])
    for name, trajectory in (("history", scene.history), ("future", scene.future)):
        if trajectory is not None:
            speeds = trajectory.states[:, 3]
            yield f"{name} speed (m/s)", speeds
            yield f"{name} acceleration (m/s^2)", np.diff(speeds) * trajectory.rate_hz


def _figures(parts: list[FloatArray]) -> dict[str, float | int | None]:
    """Number of values, smallest, median and largest of those that are known (None without any), share of NaN."""
    values = np.concatenate([np.empty(0), *parts])
    known = values[~np.isnan(values)]
    places = {"min": 0.0, "median": 0.5, "max": 1.0}
    figures = {name: float(np.quantile(known, at)) if len(known) else None for name, at in places.items()}
    return {"values": len(values), **figures, "nan": 1.0 - len(known) / len(values) if len(values) else None}


def statistics(folder: Path, sample: int, workers: int = 1) -> dict[str, Any]:
    """What is in the shards of `folder`: as index and manifest have it, and else in `sample` records, drawn at random
    but always the same.
    """
    entries = read_index(folder)
    records = sum(entry["samples"] for entry in entries)
    numbers = sorted(np.random.default_rng(0).choice(records, min(sample, records), replace=False).tolist())
    by_shard = itertools.groupby(places_of(folder, entries, numbers), key=lambda where: where[0])
    jobs = [(folder, entries[shard], [place for _, place in places]) for shard, places in by_shard]
    figures = Statistics()
    for part in each_of(jobs, _statistics_of, workers, f"statistics {folder.name}"):
        figures.add(part)
    facts = {
        "folder": str(folder),
        "records": records,
        "shards": len(entries),
        "stored_bytes": sum(stored_file(entry)["bytes"] for entry in entries),
        "unpacked_bytes": sum(entry["raw_data"]["bytes"] for entry in entries),
        **figures.facts(),
    }
    if (folder / "manifest.json").is_file():
        whole = read_manifest(folder)
        facts |= {"kinds": whole.kinds, "datasets": whole.datasets}
    return facts


def _statistics_of(job: tuple[Path, Entry, list[int]]) -> Statistics:
    folder, entry, places = job
    shard, statistics = OpenShard(folder, entry), Statistics()
    for place in places:
        scene, sizes = shard.scene(place), {name: len(cell) for name, cell in shard.cells(place).items()}
        try:
            statistics.add(Statistics.of(scene, sizes))
        except (ValueError, IndexError, ZeroDivisionError) as error:
            raise SceneError(f"{shard.path} record {place}: {error}; `verify` tells which of its fields") from error
    return statistics


def in_words(facts: Mapping[str, Any]) -> str:
    """The facts of a folder as a table."""
    sizes = f"{facts['stored_bytes'] / 1e6:.1f} MB stored, {facts['unpacked_bytes'] / 1e6:.1f} MB unpacked"
    lines = [
        f"{facts['folder']}: {facts['records']:,} records in {facts['shards']:,} shards, {sizes}",
        f"looked into {facts['sampled']:,} records",
    ]
    width = 2 + max(len(item) for name in COUNTS for item in facts[name])
    for name, of in COUNTS.items():
        whole = facts["sampled"] if name == "present" else sum(facts[name].values())
        commonest = sorted(facts[name].items(), key=lambda item: -item[1])
        for place, (item, count) in enumerate(commonest):
            title = f"{name} ({of})" if place == 0 else ""
            lines.append(f"  {title:<24}{item:<{width}}{count:>12,}{count / whole:>9.1%}")
    lines.append(f"  {'':<32}{'values':>12}{'min':>10}{'median':>10}{'max':>10}{'NaN':>9}")
    for name, figures in facts["measures"].items():
        if figures["values"]:
            shown = "".join(_figure(figures[key]).rjust(10) for key in ("min", "median", "max"))
            lines.append(f"  {name:<32}{figures['values']:>12,}{shown}{figures['nan']:>9.1%}")
    return "\n".join(lines)


def _figure(value: float | None) -> str:
    return "unknown" if value is None else f"{value:,.2f}".removesuffix(".00")
