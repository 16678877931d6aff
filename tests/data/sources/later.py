"""Datasets with a tree of their layout, and for each what alters all of a tree that is later than a moment.

A plugin joins with a `Case` of its own and `check_nothing_later`.
"""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import feather

from framework.data.sources.argoverse import Argoverse
from framework.data.sources.base import Frame, RecordedDataset
from framework.data.sources.kitti.detection import Kitti
from framework.data.sources.kitti.raw import KittiRaw
from framework.data.sources.kitti.tracking import KittiTracking
from framework.data.sources.nuscenes.dataset import NuScenes
from framework.data.sources.tracks import Nanoseconds, Track, ego_history
from framework.scene.types import FloatArray, Scene
from tests.data.scenes import same
from tests.data.sources import argoverse_tree, kitti_tree, nuscenes_tree


@dataclass(frozen=True)
class Case:
    """A dataset with a tree that is written, and altered."""

    dataset: RecordedDataset
    """The dataset."""
    write: Callable[[Path], Any]
    """Writes the same tree on every call."""
    place: int
    """The frame, among all of them, whose moment it is."""
    alter: Callable[[Path, Frame], None]
    """Alters all that is later than a frame's moment in the tree below a folder. The frame is of that tree."""


def inputs(scene: Scene) -> Scene:
    """The scene without its targets and what is scored against, all of which may tell of the future."""
    return dataclasses.replace(
        scene, future=None, surroundings=None, command="follow", questions=(), caption=None, thought=None
    )


def forget_files() -> None:
    """Forgets what modules of sources keep of files: they change in tests alone."""
    for name in [name for name in sys.modules if name.startswith("framework.data.sources.")]:
        for kept in vars(sys.modules[name]).values():
            if hasattr(kept, "cache_clear"):
                kept.cache_clear()


def check_nothing_later(case: Case, folder: Path) -> None:
    """Asserts that a moment's inputs are equal to the bit whatever is done later, which is something."""
    frames, scenes, last = [], [], []
    for number in (0, 1):
        root = folder / str(number)
        case.write(root)
        found = [frame for log in case.dataset.find_logs(str(root)) for frame in log.frames]
        frames.append(found[case.place])
        if number:
            case.alter(root, found[case.place])
            forget_files()
        scenes.append(case.dataset.read_scene(found[case.place]))
        last.append({path.relative_to(root): path.read_bytes() for path in root.rglob("*") if path.is_file()})
    assert frames[0][1] == frames[1][1]
    assert last[0] != last[1]
    before, after = (dataclasses.replace(inputs(scene), provenance={}) for scene in scenes)
    assert before.cameras or before.lidar or before.history
    assert same(before, after)


def look_ahead(patch: pytest.MonkeyPatch, whose: Literal["ego", "others"]) -> None:
    """Makes the speeds of the ego's history, or the velocities of others, central differences: they read what follows
    the moment, and nothing else does. A test of what is later must find that.
    """
    until, velocity = Track.until, Track.velocity
    wholes: dict[int, tuple[Track, Track]] = {}

    def cut(track: Track, now: int) -> Track:
        known = until(track, now)
        if sys._getframe(1).f_code is ego_history.__code__:
            return track if whose == "ego" else known
        if whose == "others":
            wholes[id(known)] = known, track  # kept, lest another gets its id
        return known

    def central(track: Track, times: Nanoseconds, span: int) -> FloatArray:
        return velocity(wholes.get(id(track), (track, track))[1], times, span)

    patch.setattr(Track, "until", cut)
    patch.setattr(Track, "velocity", central)


def altered(table: pa.Table, later: np.ndarray[Any, Any], seed: int = 0) -> pa.Table:
    """The table with every number of its `later` rows changed, and their tracks renamed."""
    rng = np.random.default_rng(seed)
    for place, name in enumerate(table.schema.names):
        if name in ("timestamp_ns", "timestep", "start_timestamp", "num_timestamps", "q"):
            continue
        field, values = table.schema.field(name), table[name].to_numpy(zero_copy_only=False).copy()
        if pa.types.is_floating(field.type):
            values[later] = values[later] * 1.3 + rng.normal(size=int(later.sum()))
        elif name in ("track_uuid", "track_id"):
            values[later] = [f"0{value}" if rng.random() < 0.5 and value != "AV" else value for value in values[later]]
        elif pa.types.is_integer(field.type):
            values[later] = values[later] + 3
        table = table.set_column(place, field, pa.array(values, field.type))
    return table


def _alter_argoverse(root: Path, frame: Frame) -> None:
    log = Path(frame[0]).parent
    for name in ("annotations.feather", "city_SE3_egovehicle.feather"):
        table = feather.read_table(log / name, memory_map=False)
        feather.write_feather(altered(table, table["timestamp_ns"].to_numpy() > frame[1]), log / name)
    for path in log.glob("sensors/*/**/*"):
        if path.stem.isdecimal() and int(path.stem) >= frame[1] + (path.suffix == ".jpg"):
            path.unlink()  # a sweep that starts at the moment is later as a whole


def _alter_nuscenes(root: Path, frame: Frame) -> None:
    folder = Path(frame[0]).parent
    samples = json.loads((folder / "sample.json").read_text())
    now, times = samples[frame[1]]["timestamp"], {row["token"]: row["timestamp"] for row in samples}
    for name in ("sample_data", "ego_pose", "sample_annotation"):
        rows = json.loads((folder / f"{name}.json").read_text())
        for row in rows:
            if row.get("timestamp", times.get(row.get("sample_token"), 0)) <= now:
                continue
            if name == "sample_data":
                (root / row["filename"]).unlink(missing_ok=True)
            else:
                row["translation"] = [value + 9.0 for value in row["translation"]]
                row["rotation"] = [0.6, 0.0, 0.0, 0.8]
        (folder / f"{name}.json").write_text(json.dumps(rows))


def _alter_kitti(root: Path, frame: Frame) -> None:
    """Files and rows of later frames; of the frame's own sweep, which ends after it, the intensities."""
    now = frame[1]
    drive = Path(frame[0]).parent.parent if "_sync" in frame[0] else root
    for path in _files(drive):
        numbered = path.stem.isdecimal() and len(path.stem) > 4
        if numbered and int(path.stem) == now and path.suffix == ".bin" and "label_2" not in frame[0]:
            points = np.frombuffer(path.read_bytes(), "<f4").reshape(-1, 4).copy()
            points[:, 3] /= 2
            path.write_bytes(points.tobytes())
        elif numbered and int(path.stem) > now:
            path.write_bytes(_other(path))
        elif path.name.startswith("timestamps"):
            lines = path.read_text().splitlines()
            lines[now + 1 :] = [  # by at most 0.09 s, so that they stay later
                re.sub(r"(\.\d)(\d)", lambda two: f"{two[1]}{9 - int(two[2])}", line) for line in lines[now + 1 :]
            ]
            path.write_text("\n".join(lines) + "\n")
        elif path.name == "tracklet_labels.xml":
            texts = path.read_text().split("<item><tx>")  # the poses of each of three objects, one after another
            count = kitti_tree.FRAMES
            poses = [f"9{text}" if (place - 1) % count > now else text for place, text in enumerate(texts[1:], start=1)]
            path.write_text("<item><tx>".join([texts[0], *poses]))
        elif path.parent.name in ("oxts", "label_02"):
            rows = path.read_text().splitlines()
            later = [place > now if path.parent.name == "oxts" else int(row.split()[0]) > now
                     for place, row in enumerate(rows)]  # fmt: skip
            path.write_text("".join(f"{_moved(row) if late else row}\n" for row, late in zip(rows, later, strict=True)))


def _files(folder: Path) -> Iterator[Path]:
    yield from (path for path in sorted(folder.rglob("*")) if path.is_file())


def _other(path: Path) -> bytes:
    if path.suffix == ".png":
        return kitti_tree.picture(200)
    return kitti_tree.sweep(999) if path.suffix == ".bin" else _moved(path.read_text().rstrip("\n")).encode()


def _moved(row: str) -> str:
    """A row whose numbers with a point have other last digits: another place on the Earth, or of an object."""
    return re.sub(r"(\d+\.\d)\d*", r"\g<1>7", row)


CASES = {
    "argoverse": Case(Argoverse(), lambda root: argoverse_tree.write_log(root, every=20), 17, _alter_argoverse),
    "nuscenes": Case(NuScenes(), nuscenes_tree.write_tree, 6, _alter_nuscenes),
    "kitti": Case(Kitti(), kitti_tree.write_object, 3, _alter_kitti),
    "kitti_raw": Case(KittiRaw(), lambda root: kitti_tree.write_raw(root, (kitti_tree.TURNING,)), 20, _alter_kitti),
    "kitti_tracking": Case(KittiTracking(), lambda root: kitti_tree.write_tracking(root, (0,)), 20, _alter_kitti),
}
"""By the name of the dataset in `conf/sources/`."""
