"""Look into folders of shards, and join them.

python -m tools.shards list FOLDER                    what every folder of shards below FOLDER holds and what it skipped
python -m tools.shards verify FOLDER --workers 4      every file against its hash, every record decoded and checked
python -m tools.shards show FOLDER --record 7 10-12   records in words
python -m tools.shards show FOLDER --record 7 --out PICTURES    and their cameras and bird's-eye views as pictures
python -m tools.shards statistics FOLDER --sample 200 what is in the records, as a table; with --out FILE as JSON
python -m tools.shards merge OUT FOLDER...            one index over several folders; nothing below OUT is copied
"""

from __future__ import annotations

import argparse
import itertools
import os
import re
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from streaming.base.format.mds.encodings import mds_decode

from framework.data.shards.parts import index_of
from framework.data.shards.record import COLUMNS, SCHEMA_VERSION
from framework.data.shards.statistics import merged, read_statistics
from framework.data.shards.writer import Summary
from framework.run.files import write_json
from framework.scene.check import check_scene
from framework.scene.picture import birds_eye, draw_on_camera
from framework.scene.types import Scene, SceneError
from tools.shard_statistics import (
    Entry,
    OpenShard,
    each_of,
    in_words,
    places_of,
    read_index,
    read_manifest,
    statistics,
    stored_file,
)

BOX_COLOUR, PATH_COLOUR = "#22c55e", "#2563eb"


def main(arguments: list[str] | None = None) -> int:
    """Do what the verb says. Returns 1 for a folder that cannot be read, does not verify or cannot be merged."""
    options = _parser().parse_args(arguments)
    try:
        if options.verb == "list":
            return _list(options.folder)
        if options.verb == "verify":
            return _verify(options.folder, options.workers)
        if options.verb == "show":
            return _show(options.folder, list(itertools.chain(*options.record)), options.out)
        if options.verb == "statistics":
            return _statistics(statistics(options.folder, options.sample, options.workers), options.out)
        print(f"{options.out}: {merge(options.out, options.folder, options.workers)}")
    except (SceneError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tools.shards", description="Look into folders of shards.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb, what in (
        ("list", "counts"),
        ("verify", "hashes and records"),
        ("show", "records in words"),
        ("statistics", "what is in the records"),
    ):
        verbs.add_parser(verb, help=what).add_argument("folder", type=Path)
    show, counting = verbs.choices["show"], verbs.choices["statistics"]
    show.add_argument(
        "--record",
        type=_numbers,
        nargs="+",
        default=[range(1)],
        help="numbers from 0 on, or ranges: 3 10-20 (default: 0)",
    )
    show.add_argument("--out", type=Path, help="folder for pictures")
    counting.add_argument("--sample", type=_positive, default=200, help="how many records to look at (default: 200)")
    counting.add_argument("--out", type=Path, help="JSON file for the same facts")
    merging = verbs.add_parser("merge", help="one index over several folders")
    merging.add_argument("out", type=Path, help="the folder that becomes a stream of them all")
    merging.add_argument("folder", type=Path, nargs="+", help="folders of shards; linked or copied if not below OUT")
    for verb in ("verify", "statistics", "merge"):
        verbs.choices[verb].add_argument("--workers", type=_positive, default=1, help="processes")
    return parser


def _numbers(text: str) -> range:
    match = re.fullmatch(r"(\d+)(?:-(\d+))?", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a record's number nor a range such as 10-20")
    return range(int(match[1]), int(match[2] or match[1]) + 1)


def _positive(text: str) -> int:
    if not (text.isdecimal() and int(text)):
        raise argparse.ArgumentTypeError(f"{text!r} is no positive number")
    return int(text)


def read(folder: Path, number: int) -> Scene:
    """Record `number` of all shards in `folder`. Raises `SceneError` when there is no such record."""
    return next(scenes(folder, [number]))


def scenes(folder: Path, numbers: Iterable[int]) -> Iterator[Scene]:
    """The records of those numbers, each shard read once for those that follow each other."""
    entries = read_index(folder)
    opened: tuple[int, OpenShard] | None = None
    for shard, place in places_of(folder, entries, numbers):
        if opened is None or opened[0] != shard:
            opened = shard, OpenShard(folder, entries[shard])
        yield opened[1].scene(place)


def _list(folder: Path) -> int:
    manifests = sorted(folder.rglob("manifest.json"))
    if not manifests:
        raise SceneError(f"{folder}: no manifest.json in it or below: no folder of shards that is whole")
    for manifest in manifests:
        shards, summary = read_index(manifest.parent), read_manifest(manifest.parent)
        size = sum(stored_file(shard)["bytes"] for shard in shards)
        print(f"{manifest.parent}: {len(shards)} shards, {size / 1e6:.1f} MB, schema {summary.schema}")
        print(summary)
    return 0


def verify(folder: Path, workers: int = 1) -> Iterator[str]:
    """Every fault of the shards in `folder`, each naming the shard, and the record where it is one record's."""
    jobs = [(folder, entry) for entry in read_index(folder)]
    return itertools.chain.from_iterable(each_of(jobs, _faults, workers, f"verify {folder.name}"))


def _faults(job: tuple[Path, Entry]) -> list[str]:
    try:
        shard = OpenShard(*job)
    except SceneError as error:
        return [str(error)]
    faults = []
    for place in range(shard.samples):
        try:
            faults += [f"{shard.path} record {place}: {problem}" for problem in check_scene(shard.scene(place))]
        except SceneError as error:
            faults.append(str(error))
    return faults


def _verify(folder: Path, workers: int) -> int:
    faults = 0
    for fault in verify(folder, workers):
        print(fault)
        faults += 1
    records = sum(entry["samples"] for entry in read_index(folder))
    print(f"{folder}: {records} records, {faults} faults")
    return 1 if faults else 0


def _statistics(facts: dict[str, Any], out: Path | None) -> int:
    print(in_words(facts))
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_json(out, facts, durable=False)
    return 0


def _show(folder: Path, numbers: Sequence[int], out: Path | None) -> int:
    for number, scene in zip(numbers, scenes(folder, numbers), strict=True):
        if len(numbers) > 1:
            print(f"\nrecord {number}")
        print("\n".join(_words(scene)))
        if out is not None:
            _draw(scene, out / str(number) if len(numbers) > 1 else out)
    return 0


def _draw(scene: Scene, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    paths = {} if scene.future is None else {"future": (PATH_COLOUR, scene.future.states)}
    (out / "above.svg").write_text(birds_eye(scene, paths))
    boxes = [] if scene.boxes is None else [(BOX_COLOUR, scene.boxes)]
    for camera in scene.cameras:
        (out / f"{camera.name}.jpg").write_bytes(draw_on_camera(camera, boxes, list(paths.values()), camera.width))
    print(f"{out}: above.svg and {len(scene.cameras)} cameras")


def _words(scene: Scene) -> Iterator[str]:
    yield f"id: {scene.id}"
    yield f"kind: {scene.kind}"
    yield f"command: {scene.command}"
    for camera in scene.cameras:
        what = "frames" if camera.clip is None else "frames in a clip"
        yield f"camera {camera.name}: {len(camera.times)} {what} of {camera.width} x {camera.height}"
    if scene.lidar is not None:
        yield f"lidar: {len(scene.lidar.points)} points"
    if scene.radar is not None:
        yield f"radar: {len(scene.radar.returns)} returns"
    for name, boxes in (("perception", scene.perception), ("boxes", scene.boxes)):
        if boxes is not None:
            counts = {label: boxes.labels.count(label) for label in sorted(set(boxes.labels))}
            yield f"{name}: " + (", ".join(f"{label} {count}" for label, count in counts.items()) or "none")
    for name, trajectory in (("history", scene.history), ("future", scene.future)):
        if trajectory is not None:
            x, y, heading, speed = trajectory.states[0 if name == "history" else -1]
            which = "begins" if name == "history" else "ends"
            yield f"{name}: {which} at ({x:.1f}, {y:.1f}) m, heading {np.degrees(heading):.0f} degrees, {speed:.1f} m/s"
    for question in scene.questions:
        yield f"question ({question.topic}): {question.question} {question.answer}"
    for name in ("caption", "thought"):
        if getattr(scene, name) is not None:
            yield f"{name}: {getattr(scene, name)}"
    for name, value in scene.provenance.items():
        yield f"provenance {name}: {value}"


# Merging


def merge(out: Path, folders: Sequence[Path], workers: int = 1) -> Summary:
    """Make `out` a stream of the shards of all `folders`, in their order. Those below `out` stay where they are; others
    get hard links below it, or copies where links cannot be. The index is written last: until then `out` is no stream.

    Raises `SceneError` when `out` is one already, and for shards that cannot be one stream: of other columns or
    compressions, another schema, or with a scene twice.
    """
    if (out / "index.json").exists():
        raise SceneError(f"{out}/index.json: exists; merge into another folder, or remove it to merge again")
    entries = {folder: read_index(folder) for folder in folders}
    _require_alike(entries)
    summary = Summary()
    for folder in folders:
        manifest = read_manifest(folder)
        if manifest.schema != SCHEMA_VERSION:
            raise SceneError(f"{folder}/manifest.json: schema: {_other_schema(manifest.schema)}")
        summary.add(manifest)
    _require_distinct([(folder, entry) for folder in folders for entry in entries[folder]], workers)
    out.mkdir(parents=True, exist_ok=True)
    shards = [entry for folder in folders for entry in _brought(folder, entries[folder], out.resolve())]
    write_json(out / "manifest.json", asdict(summary), durable=False)
    statistics = merged(read_statistics(folder / "index.json") for folder in folders)
    write_json(out / "index.json", index_of(shards, statistics), durable=False)
    return summary


def _require_alike(entries: dict[Path, list[Entry]]) -> None:
    compression: tuple[Path, str | None] | None = None
    for folder, shards in entries.items():
        for entry in shards:
            where = f"{folder}/index.json: {stored_file(entry)['basename']}"
            columns = dict(zip(entry["column_names"], entry["column_encodings"], strict=True))
            if list(columns.items()) != sorted(COLUMNS.items()):  # the order in which MDS writes them
                unlike = sorted(dict(columns.items() ^ COLUMNS.items())) or ["order"]
                raise SceneError(f"{where}: column_names: not a record's in {', '.join(unlike)}; convert it again")
            compression = compression or (folder, entry["compression"])
            if entry["compression"] != compression[1]:
                raise SceneError(
                    f"{where}: compression: {entry['compression']} where {compression[0]} has {compression[1]}; a "
                    "stream has one: write it again"
                )


def _require_distinct(jobs: Sequence[tuple[Path, Entry]], workers: int) -> None:
    seen: dict[str, str] = {}
    for (folder, entry), names in zip(jobs, each_of(jobs, _ids, workers, "ids"), strict=True):
        for place, name in enumerate(names):
            where = f"{folder / stored_file(entry)['basename']} record {place}"
            if name in seen:
                raise SceneError(f"{where}: id: scene {name} is also {seen[name]}; leave one of them out")
            seen[name] = where


def _ids(job: tuple[Path, Entry]) -> list[str]:
    """The ids of a shard's records, all of which must be of this schema."""
    shard, names = OpenShard(*job), []
    for place in range(shard.samples):
        cells = shard.cells(place)
        schema = mds_decode(COLUMNS["schema"], cells["schema"])
        if schema != SCHEMA_VERSION:
            raise SceneError(f"{shard.path} record {place}: schema: {_other_schema(schema)}")
        names.append(mds_decode(COLUMNS["id"], cells["id"]))
    return names


def _other_schema(version: int) -> str:
    return f"version {version}, which cannot be merged with {SCHEMA_VERSION}, this code's; convert the shards again"


def _brought(folder: Path, entries: Sequence[Entry], out: Path) -> Iterator[Entry]:
    """The shards of `folder` as the index of `out` names them, once their files are below it."""
    home = folder.resolve()
    if not home.is_relative_to(out):
        names = itertools.chain([home.name], (f"{home.name}-{number}" for number in itertools.count(2)))
        home = next(out / name for name in names if not (out / name).exists())
        for entry in entries:
            _link(folder / stored_file(entry)["basename"], home / stored_file(entry)["basename"])
    for entry in entries:
        files = {kind: entry[kind] for kind in ("raw_data", "zip_data") if entry[kind]}
        below = home.relative_to(out)
        yield entry | {kind: file | {"basename": str(below / file["basename"])} for kind, file in files.items()}


def _link(source: Path, target: Path) -> None:
    """Link `target` to `source`, or copy it: to another file system, say, or where links are forbidden."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source.resolve(), target)
    except OSError:
        shutil.copyfile(source, target)


if __name__ == "__main__":
    sys.exit(main())
