"""Look into folders of shards.

python -m tools.shards list FOLDER                    what every folder of shards below FOLDER holds and what it skipped
python -m tools.shards verify FOLDER                  every file against its hash, every record decoded and checked
python -m tools.shards show FOLDER --record 7         one record in words
python -m tools.shards show FOLDER --record 7 --out PICTURES    and its cameras and bird's-eye view as pictures
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from streaming.base.compression import decompress
from streaming.base.format.mds.reader import MDSReader
from streaming.base.hashing import get_hash

from framework.data.record import decode
from framework.data.shards import Summary
from framework.scene.check import check_scene
from framework.scene.picture import birds_eye, draw_on_camera
from framework.scene.types import Scene, SceneError

BOX_COLOUR, PATH_COLOUR = "#22c55e", "#2563eb"


def main(arguments: list[str] | None = None) -> int:
    """List, verify or show. Returns 1 for a folder that cannot be read or does not verify."""
    parser = argparse.ArgumentParser(prog="python -m tools.shards", description="Look into folders of shards.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb, what in (("list", "counts"), ("verify", "hashes and records"), ("show", "one record")):
        verbs.add_parser(verb, help=what).add_argument("folder", type=Path)
    show = verbs.choices["show"]
    show.add_argument("--record", type=int, default=0, help="its number, counted from 0 (default: 0)")
    show.add_argument("--out", type=Path, help="folder for pictures")
    options = parser.parse_args(arguments)
    try:
        if options.verb == "list":
            return _list(options.folder)
        if options.verb == "verify":
            return _verify(options.folder)
        return _show(options.folder, options.record, options.out)
    except SceneError as error:
        print(error, file=sys.stderr)
        return 1


def verify(folder: Path) -> Iterator[str]:
    """Every fault of the shards in `folder`, each naming the shard, and the record where it is one record's."""
    for entry in _index(folder):
        stored = entry["zip_data"] or entry["raw_data"]
        path = folder / stored["basename"]
        if not path.is_file():
            yield f"{path}: is missing; fetch or write it again"
            continue
        data = path.read_bytes()
        if len(data) != stored["bytes"]:
            yield f"{path}: {len(data)} bytes where the index counts {stored['bytes']}; fetch or write it again"
            continue
        wrong = [name for name, value in stored["hashes"].items() if get_hash(name, data) != value]
        if wrong:
            yield f"{path}: {' and '.join(wrong)} differ from the index's: it has changed; fetch or write it again"
            continue
        for number, record in enumerate(_records(entry, data)):
            try:
                yield from (f"{path} record {number}: {problem}" for problem in check_scene(decode(record)))
            except SceneError as error:
                yield f"{path} record {number}: {error}"


def read(folder: Path, number: int) -> Scene:
    """Record `number` of all shards in `folder`. Raises `SceneError` when there is no such record."""
    left = number
    for entry in _index(folder):
        if 0 <= left < entry["samples"]:
            data = (folder / (entry["zip_data"] or entry["raw_data"])["basename"]).read_bytes()
            return decode(next(itertools.islice(_records(entry, data), left, None)))
        left -= entry["samples"]
    raise SceneError(f"{folder}: has no record {number}; it holds {number - left}, counted from 0")


def _list(folder: Path) -> int:
    manifests = sorted(folder.rglob("manifest.json"))
    if not manifests:
        raise SceneError(f"{folder}: no manifest.json in it or below: no folder of shards that is whole")
    for manifest in manifests:
        shards = _index(manifest.parent)
        size = sum((shard["zip_data"] or shard["raw_data"])["bytes"] for shard in shards)
        print(f"{manifest.parent}: {len(shards)} shards, {size / 1e6:.1f} MB, schema {Summary.read(manifest).schema}")
        print(Summary.read(manifest))
    return 0


def _verify(folder: Path) -> int:
    faults = list(verify(folder))
    records = sum(entry["samples"] for entry in _index(folder))
    print("\n".join([*faults, f"{folder}: {records} records, {len(faults)} faults"]))
    return 1 if faults else 0


def _show(folder: Path, number: int, out: Path | None) -> int:
    scene = read(folder, number)
    print("\n".join(_words(scene)))
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        paths = {} if scene.future is None else {"future": (PATH_COLOUR, scene.future.states)}
        (out / "above.svg").write_text(birds_eye(scene, paths))
        boxes = [] if scene.boxes is None else [(BOX_COLOUR, scene.boxes)]
        for camera in scene.cameras:
            (out / f"{camera.name}.jpg").write_bytes(draw_on_camera(camera, boxes, list(paths.values()), camera.width))
        print(f"{out}: above.svg and {len(scene.cameras)} cameras")
    return 0


def _words(scene: Scene) -> Iterator[str]:
    yield f"id: {scene.id}"
    yield f"kind: {scene.kind}"
    yield f"command: {scene.command}"
    for camera in scene.cameras:
        yield f"camera {camera.name}: {len(camera.frames)} frames of {camera.width} x {camera.height}"
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


def _index(folder: Path) -> list[dict[str, Any]]:
    path = folder / "index.json"
    if not path.is_file():
        raise SceneError(f"{path}: is missing: not a folder of shards, or one that is not whole; write or convert it")
    try:
        shards: list[dict[str, Any]] = json.loads(path.read_text())["shards"]
    except (ValueError, KeyError) as error:
        raise SceneError(f"{path}: {error!r}: is damaged; fetch it again, or remove it and write again") from error
    return shards


def _records(entry: dict[str, Any], stored: bytes) -> Iterator[dict[str, Any]]:
    """The columns of a shard's records: it begins with the number of samples and where each begins and ends."""
    reader = MDSReader.from_json("", None, entry)
    reader.validate(allow_unsafe_types=False)
    data = decompress(entry["compression"], stored) if entry["zip_data"] else stored
    offsets = np.frombuffer(data, np.uint32, count=entry["samples"] + 1, offset=4)
    for begin, end in itertools.pairwise(offsets):
        yield reader.decode_sample(data[begin:end])


if __name__ == "__main__":
    sys.exit(main())
