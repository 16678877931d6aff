"""KITTI's tracking benchmark as downloaded: `training/` and `testing/` with `image_02`, `image_03` and `velodyne`, a
folder for each sequence, and `calib`, `oxts` and `label_02`, a file for each.

Frames have no stamps: they are counted at 10 Hz. Frames of `oxts` are the lines of a sequence's file. `testing` has no
labels, and is held out; of `training` a hash of the sequence's name holds some out. Sequences are cut from the raw
drives without telling which: do not judge by one of both what was trained on the other.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from framework.data.sources.base import (
    NO_PERCEPTION,
    UNREADABLE,
    Frame,
    LogSplit,
    RecordedLog,
    SweepRule,
    each_once,
    fault_of,
    walk,
)
from framework.data.sources.kitti.calibration import CAMERAS, benchmark_rig
from framework.data.sources.kitti.drive import Drive, Readings, of_frames, scene_of, survey, tracks_of
from framework.data.sources.kitti.labels import Labelled, by_frame, each_track_once, read_labels
from framework.data.sources.kitti.oxts import read_poses
from framework.data.sources.tracks import SECOND, Track
from framework.recipe.component import component
from framework.scene.types import Scene, SceneError

POSES, CALIBRATION, LABELS_FOLDER, SWEEPS = "oxts", "calib", "label_02", "velodyne"
IMAGES = {2: "image_02", 3: "image_03"}
"""Folders of the cameras by their numbers."""
PERIOD = SECOND // 10
"""Time (ns) between frames."""
TEST = "testing"


@component
@dataclass(frozen=True)
class KittiTracking:
    """Sequences of KITTI's tracking benchmark."""

    cameras: Sequence[str] | None = None
    """Names of the cameras to read, `front` or `front_right`; None reads both where they are there."""
    sweep: SweepRule = "past"
    """The Velodyne's sweep: `past` the newest that had ended by the moment, so that no input is later; `annotated` that
    of the frame, which the official task reads and which ends 0.05 s after the moment."""

    lacks: ClassVar[Mapping[str, str]] = {
        "radar": "the vehicle has none",
        "surroundings": "only what the front cameras see is annotated, and there is no map",
        "perception": NO_PERCEPTION,
        "thought": "nobody wrote any",
    }

    def find_logs(self, folder: str) -> Iterator[RecordedLog]:
        """See `RecordedDataset`."""
        yield from each_once(self._logs(folder))

    def _logs(self, folder: str) -> Iterator[RecordedLog]:
        for place, names, _ in walk(folder):
            if len({IMAGES[2], CALIBRATION, POSES} & set(names)) < 2 or re.fullmatch(r".*_(sync|extract)", place.name):
                continue
            names.clear()
            for sequence in _sequences(place):
                yield self._log(place, sequence)

    def read_scene(self, frame: Frame) -> Scene:
        """See `RecordedDataset`."""
        path = Path(frame[0])
        return scene_of(*_open(path.parent.parent, path.stem), frame[1], self.cameras, self.sweep)

    def _log(self, folder: Path, sequence: str) -> RecordedLog:
        official: LogSplit | None = "held_out" if folder.name == TEST else None
        name = f"{folder.name}-{sequence}"
        try:
            drive, _ = _open(folder, sequence)
            frames, left_out = survey(drive, self.cameras, self.sweep)
        except UNREADABLE as error:
            fault = f"sequence that can't be read ({fault_of(folder / POSES / f'{sequence}.txt', error)})"
            return RecordedLog(name, (), left_out={fault: 1})
        parts = [folder / each / sequence for each in (*IMAGES.values(), SWEEPS)]
        parts += [folder / each / f"{sequence}.txt" for each in (CALIBRATION, LABELS_FOLDER)]
        return RecordedLog(name, frames, official, left_out, tuple(str(part) for part in parts if part.exists()))


def _sequences(folder: Path) -> list[str]:
    """Returns the names of the sequences of which there is anything."""
    found = {path.stem for each in (POSES, CALIBRATION, LABELS_FOLDER) for path in (folder / each).glob("*.txt")}
    return sorted(name for name in found if re.fullmatch(r"\d{4}", name))


@functools.lru_cache(maxsize=1)
def _open(folder: Path, sequence: str) -> tuple[Drive, Mapping[str, Track]]:
    """Returns a sequence and the tracks of its objects; cached, since its frames are read in sequence."""
    key = folder / POSES / f"{sequence}.txt"
    if not key.is_file():
        raise SceneError(f"{key}: is missing; fetch data_tracking_oxts.zip")
    rig = benchmark_rig(folder / CALIBRATION / f"{sequence}.txt", has_poses=True)
    packets = dict(enumerate(key.read_text(encoding="ascii", errors="replace").splitlines()))
    poses, numbers, left_out = read_poses(packets, {number: number * PERIOD for number in packets}, key)
    stamps = dict(zip(numbers.tolist(), poses.times.tolist(), strict=True))

    def readings(name: str, what: str, suffix: str) -> Readings:
        place = folder / name / sequence
        there = [int(path.stem) for path in sorted(place.glob(f"*.{suffix}")) if re.fullmatch(r"\d{6}", path.stem)]
        kept, others = of_frames(what, {number: number * PERIOD for number in there}, stamps)
        left_out.update(others)
        return Readings(place, f"{{:06d}}.{suffix}", kept)

    named = {n: readings(name, f"image of {CAMERAS[n]}", "png") for n, name in IMAGES.items()}
    cameras = {number: each for number, each in named.items() if each.times}
    sweeps = readings(SWEEPS, "sweep", "bin")
    objects: dict[int, list[Labelled]] | None = None
    labels = folder / LABELS_FOLDER / f"{sequence}.txt"
    if labels.is_file():
        labelled, refused = read_labels(labels, rig.camera0_to_ego, has_tracks=True)
        kept = each_track_once(labelled)
        objects = by_frame(kept)
        left_out.update(refused)
        left_out[f"label whose track_id names another object of its frame ({labels})"] = len(labelled) - len(kept)
    drive = Drive(
        f"{folder.name}-{sequence}",
        "KITTI tracking",
        "kitti_tracking",
        key,
        rig,
        numbers,
        poses,
        cameras,
        sweeps,
        objects,
        +left_out,
        has_clock=False,
    )
    return drive, tracks_of(drive)
