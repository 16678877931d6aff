"""KITTI's 3-D object benchmark as downloaded: `training/` with `image_2`, `image_3`, `velodyne`, `calib`, `label_2`.

Frames are single: the benchmark drew them from the raw drives and shuffled them. Splits are the lists `train.txt` and
`val.txt` of a folder `ImageSets` next to `training` or in it, where there are any. Without them the development kit's
`mapping/` next to `training` tells the drive of each frame, all of whose frames are in one split; without both, frames
are split one by one, and the report says so. `testing/` has no labels, hence nothing to learn or score.
"""

from __future__ import annotations

import functools
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from framework.data.sources.annotate import annotated, dropped, unmapped
from framework.data.sources.base import NO_PERCEPTION, Frame, LogSplit, RecordedLog, walk
from framework.data.sources.kitti import info
from framework.data.sources.kitti.calibration import CAMERAS, VELODYNE, benchmark_rig, read_camera
from framework.data.sources.kitti.labels import LICENCE, boxes_of, count_points, known, read_labels, values_of
from framework.data.sources.points import read_points
from framework.recipe.component import component
from framework.scene.types import Camera, Lidar, Scene, SceneError

LABELS_FOLDER, SWEEPS, CALIBRATION = "label_2", "velodyne", "calib"
IMAGES = {2: "image_2", 3: "image_3"}
"""Folders of the cameras by their numbers."""
EARLIER = ("prev_2", "prev_3")
"""Folders of three earlier images of each frame, without poses."""
FRAME = re.compile(r"\d{6}\.txt")
LISTS: dict[str, LogSplit] = {"train.txt": "train", "val.txt": "held_out"}


@component
@dataclass(frozen=True)
class Kitti:
    """Frames of KITTI's object benchmark, as downloaded or described by an `info.json` in the layout of
    MMDetection3D.
    """

    cameras: Sequence[str] | None = None
    """Names of the cameras to read, `front` or `front_right`; None reads both where they are there."""

    lacks: ClassVar[Mapping[str, str]] = {
        "radar": "the vehicle has none",
        "history": "frames are single, in no order of time",
        "future": "frames are single, in no order of time",
        "surroundings": "frames are single, in no order of time",
        "perception": NO_PERCEPTION,
        "thought": "nobody wrote any",
    }

    def find_logs(self, folder: str) -> Iterator[RecordedLog]:
        """See `RecordedDataset`."""
        seen: set[int] = set()
        for place, names, _ in walk(folder):
            if len({LABELS_FOLDER, CALIBRATION, IMAGES[2]} & set(names)) > 1:
                names[:] = [
                    name for name in names if name not in (LABELS_FOLDER, CALIBRATION, SWEEPS, *IMAGES.values())
                ]
                yield from _logs_of(place, seen)
        yield from (_unseen(log, seen) for log in info.find_logs(folder))

    def read_scene(self, frame: Frame) -> Scene:
        """See `RecordedDataset`."""
        path = Path(frame[0])
        return info.read_scene(frame) if path.suffix == ".json" else _read(path, self.cameras)


def _logs_of(folder: Path, seen: set[int]) -> Iterator[RecordedLog]:
    """Yields the logs of a folder such as `training`, without the frames that were `seen`; adds theirs."""
    labels = _numbers(folder / LABELS_FOLDER)
    calibrated = _numbers(folder / CALIBRATION)
    left_out = Counter(
        {
            f"frame without a label in {folder / LABELS_FOLDER}": len(calibrated - labels),
            f"frame without a file in {folder / CALIBRATION}; fetch data_object_calib.zip": len(labels - calibrated),
            f"frame that another folder has, too ({folder})": len(labels & calibrated & seen),
        }
    )
    for name in EARLIER:
        left_out[f"earlier image, which has no pose ({folder / name})"] = _count(folder / name)
    frames = sorted((labels & calibrated) - seen)
    splits, drives = read_splits(folder), read_drives(folder)
    if frames and not splits and not drives:
        left_out[
            f"note: {folder} has neither ImageSets/ nor the development kit's mapping/, so that frames are split one by"
            " one, and those of a drive may be in both splits"
        ] = 1
    if splits:
        left_out[f"note: frame that no list of ImageSets/ names, split by its number ({folder})"] = len(
            set(frames) - splits.keys()
        )
    if counts := +left_out:
        yield RecordedLog(str(folder), (), left_out=counts)
    logs: dict[tuple[str, LogSplit | None], list[int]] = defaultdict(list)
    for number in frames:
        name = f"{number:06d}" if splits else drives.get(number, f"{number:06d}")
        logs[name, splits.get(number)].append(number)
    parts = (folder / name for name in (CALIBRATION, SWEEPS, *IMAGES.values(), "mapping"))
    files = tuple(str(part) for part in parts if part.exists())
    for (name, official), numbers in logs.items():
        seen.update(numbers)
        places = tuple((str(folder / LABELS_FOLDER / f"{number:06d}.txt"), number) for number in numbers)
        yield RecordedLog(name, places, official, files=files)


def _unseen(log: RecordedLog, seen: set[int]) -> RecordedLog:
    """Returns a log of an info file without the frames that were `seen` in the benchmark's own layout."""
    frames = tuple(frame for frame in log.frames if info.number_of(frame) not in seen)
    repeated = len(log.frames) - len(frames)
    counts = {"frame of an info file that is read from elsewhere": repeated} if repeated else {}
    return replace(log, frames=frames, left_out={**log.left_out, **counts})


@functools.lru_cache(maxsize=2)
def read_splits(folder: Path) -> Mapping[int, LogSplit]:
    """Returns the official split of each frame that the lists in `ImageSets` name; empty without them."""
    splits: dict[int, LogSplit] = {}
    for home in (folder.parent, folder):
        for name, split in LISTS.items():
            path = home / "ImageSets" / name
            words = _text(path).split() if path.is_file() else []
            splits |= {int(word): split for word in words if word.isdecimal()}
    return splits


@functools.lru_cache(maxsize=2)
def read_drives(folder: Path) -> Mapping[int, str]:
    """Returns the name of the drive of each frame, such as `2011_09_26_drive_0005`, by the development kit's mapping:
    `train_rand.txt` gives for each frame the line, counted from 1, of `train_mapping.txt`. Empty without it.
    """
    for home in (folder.parent, folder):
        order, lines = home / "mapping" / "train_rand.txt", home / "mapping" / "train_mapping.txt"
        if order.is_file() and lines.is_file():
            rows = [line.split() for line in _text(lines).splitlines()]
            places = [int(word) for word in re.findall(r"\d+", _text(order))]
            return {
                number: rows[place - 1][1].removesuffix("_sync")
                for number, place in enumerate(places)
                if 0 < place <= len(rows) and len(rows[place - 1]) > 1
            }
    return {}


def _numbers(folder: Path) -> set[int]:
    return {int(path.stem) for path in folder.glob("*.txt") if FRAME.fullmatch(path.name)} if folder.is_dir() else set()


def _text(path: Path) -> str:
    """Returns a list of the dataset; where it is damaged it has words that are no numbers."""
    return path.read_text(encoding="ascii", errors="replace")


def _count(folder: Path) -> int:
    return sum(1 for _ in folder.iterdir()) if folder.is_dir() else 0


def _read(label: Path, names: Sequence[str] | None) -> Scene:
    """Returns the scene of a frame by its file of labels."""
    folder, stem = label.parent.parent, label.stem
    rig = benchmark_rig(folder / CALIBRATION / f"{stem}.txt", has_poses=False)
    labelled, others = read_labels(label, rig.camera0_to_ego, has_tracks=False)
    objects, unknown = known(labelled)
    cameras: list[Camera] = []
    unread: list[str] = []
    for number, images in IMAGES.items():
        if not (folder / images).is_dir() or (names is not None and CAMERAS[number] not in names):
            continue
        try:
            cameras.append(read_camera(number, rig, folder / images / f"{stem}.png", 0.0))
        except (SceneError, OSError) as error:
            unread.append(f"{CAMERAS[number]} ({error})")
    lidar = None
    try:
        lidar = Lidar(read_points(folder / SWEEPS / f"{stem}.bin", 4, others), VELODYNE)
    except FileNotFoundError:
        unread.append(f"lidar (no file in {folder / SWEEPS}; fetch data_object_velodyne.zip)")
    except SceneError as error:
        unread.append(f"lidar ({error})")
    if not cameras and lidar is None:
        raise SceneError(f"{label}: the frame has neither an image nor a sweep; {'; '.join(unread)}")
    values = values_of(objects)
    boxes = boxes_of(objects, values, None if lidar is None else count_points(values, lidar.points))
    seen = boxes.visible()
    drive = stem if read_splits(folder) else read_drives(folder).get(int(stem), stem)
    return Scene(
        id=f"kitti-{stem}",
        kind="kitti",
        cameras=tuple(cameras),
        lidar=lidar,
        boxes=boxes,
        **annotated(seen, None),
        provenance={
            "dataset": "KITTI",
            "log": drive,
            "timestamp": "unknown",
            "licence": LICENCE,
            **unmapped(unknown),
            **dropped(boxes, unread, others),
        },
    )
