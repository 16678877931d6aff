"""KITTI's raw drives as downloaded, synchronised and rectified: `DATE/DATE_drive_NNNN_sync/` next to three files of
calibration, with `image_00` to `image_03`, `velodyne_points`, `oxts` and, for some, `tracklet_labels.xml`.

Drives lack single scans and stamps: files are joined by their numbers, and the line of a number in `timestamps.txt`
counts from 0.
"""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from framework.data.sources.base import NO_PERCEPTION, UNREADABLE, Frame, RecordedLog, SweepRule, fault_of, walk
from framework.data.sources.kitti.calibration import AGAIN, CAMERAS, raw_rig
from framework.data.sources.kitti.drive import Drive, Readings, of_frames, scene_of, survey, tracks_of
from framework.data.sources.kitti.labels import Labelled, by_frame, read_tracklets
from framework.data.sources.kitti.oxts import read_poses
from framework.data.sources.tracks import Track
from framework.recipe.component import component
from framework.scene.types import Scene, SceneError

DRIVE = re.compile(r"(\d{4}_\d{2}_\d{2}_drive_\d{4})_(sync|extract)")
SWEEPS, POSES, TRACKLETS = "velodyne_points", "oxts", "tracklet_labels.xml"
STAMPS, ENDS = "timestamps.txt", "timestamps_end.txt"


@component
@dataclass(frozen=True)
class KittiRaw:
    """Drives of KITTI's raw data. They have no official splits: a hash of the drive's name holds some out."""

    cameras: Sequence[str] | None = None
    """Names of the cameras to read, `front`, `front_right`, `front_grey` or `front_right_grey`; None reads all."""
    sweep: SweepRule = "past"
    """The Velodyne's sweep: `past` the newest that had ended by the moment, so that no input is later; `annotated` that
    of the frame, which its tracklets describe and which ends 0.05 s after the moment."""

    lacks: ClassVar[Mapping[str, str]] = {
        "radar": "the vehicle has none",
        "surroundings": "only what the front cameras see is annotated, and there is no map",
        "perception": NO_PERCEPTION,
        "thought": "nobody wrote any",
    }

    def find_logs(self, folder: str) -> Iterator[RecordedLog]:
        """See `RecordedDataset`."""
        seen: set[str] = set()
        for place, names, _ in walk(folder):
            match = DRIVE.fullmatch(place.name)
            if match is None:
                continue
            names.clear()
            name = match[1]
            if match[2] == "extract" or name in seen:
                what = (
                    "whose sensors are not synchronised; fetch its _sync archive" if name not in seen else "found twice"
                )
                yield RecordedLog(name, (), left_out={f"drive {what} ({place})": 1})
                continue
            try:
                drive, _ = _open(place)
                frames, left_out = survey(drive, self.cameras, self.sweep)
            except UNREADABLE as error:
                yield RecordedLog(name, (), left_out={f"drive that can't be read ({fault_of(place, error)})": 1})
                continue
            seen.add(name)
            parts = [place / each / "data" for each in (SWEEPS, POSES, *(f"image_{n:02d}" for n in CAMERAS))]
            parts += [place / TRACKLETS, *place.parent.glob("calib_*.txt")]
            yield RecordedLog(name, frames, None, left_out, tuple(str(part) for part in parts if part.exists()))

    def read_scene(self, frame: Frame) -> Scene:
        """See `RecordedDataset`."""
        return scene_of(*_open(Path(frame[0]).parent.parent), frame[1], self.cameras, self.sweep)


@functools.lru_cache(maxsize=1)
def _open(folder: Path) -> tuple[Drive, Mapping[str, Track]]:
    """Returns a drive and the tracks of its objects; cached, since its frames are read in sequence."""
    rig = raw_rig(folder.parent)
    left_out: Counter[str] = Counter()
    packets = {
        number: (folder / POSES / "data" / name).read_text(encoding="ascii", errors="replace")
        for number, name in _files(folder / POSES, "txt")
    }
    times, faults = read_stamps(folder / POSES / STAMPS)
    poses, numbers, refused = read_poses(packets, times, folder / POSES / "data")
    stamps = dict(zip(numbers.tolist(), poses.times.tolist(), strict=True))
    left_out.update(faults + refused)

    def readings(name: str, what: str, suffix: str, ends: Mapping[int, int] | None = None) -> Readings | None:
        there = {number for number, _ in _files(folder / name, suffix)}
        if not there:
            return None
        try:
            stamped, faults = read_stamps(folder / name / STAMPS)
        except SceneError as error:
            left_out[f"{what}: {error}"] += len(there)
            return None
        kept, others = of_frames(what, {n: time for n, time in stamped.items() if n in there}, stamps)
        left_out.update(faults + others)
        left_out[f"{what} without a time in {folder / name / STAMPS}"] += len(there - stamped.keys())
        return Readings(folder / name / "data", f"{{:010d}}.{suffix}", kept, ends or {})

    cameras = {n: each for n in CAMERAS if (each := readings(f"image_{n:02d}", f"image of {CAMERAS[n]}", "png"))}
    ends: dict[int, int] = {}
    if (folder / SWEEPS / ENDS).is_file():
        ends, faults = read_stamps(folder / SWEEPS / ENDS)
        left_out.update(faults)
    sweeps = readings(SWEEPS, "sweep", "bin", ends) or Readings(folder, "{}", {})
    objects: dict[int, list[Labelled]] | None = None
    try:
        labelled, refused = read_tracklets(folder / TRACKLETS)
        objects = by_frame(labelled)
        left_out.update(refused)
    except FileNotFoundError:
        pass  # most drives have none, which the survey counts
    except SceneError as error:
        left_out[str(error)] = 1
    match = DRIVE.fullmatch(folder.name)
    name = folder.name if match is None else match[1]
    key = folder / POSES / STAMPS
    drive = Drive(name, "KITTI raw", "kitti_raw", key, rig, numbers, poses, cameras, sweeps, objects, +left_out)
    return drive, tracks_of(drive)


def read_stamps(path: Path) -> tuple[dict[int, int], Counter[str]]:
    """Returns the times (ns) of a file of stamps by their line, counted from 0, and how many lines hold something else;
    blank ones are of frames that the sensor lacks. Raises `SceneError` for a file that is missing.
    """
    try:
        lines = path.read_text(encoding="ascii", errors="replace").splitlines()
    except FileNotFoundError as error:
        raise SceneError(f"{path}: is missing; {AGAIN}") from error
    times: dict[int, int] = {}
    left_out: Counter[str] = Counter()
    for number, line in enumerate(lines):
        try:
            stamp = np.datetime64(line.strip().replace(" ", "T"), "ns") if line.strip() else np.datetime64("NaT")
        except ValueError:
            left_out[f"stamp: {path}: line {number + 1}: {line.strip()!r} is no time; {AGAIN}"] += 1
            continue
        if not np.isnat(stamp):
            times[number] = int(stamp.astype(np.int64))
    return times, left_out


def _files(folder: Path, suffix: str) -> Iterator[tuple[int, str]]:
    """Yields the numbers and the names of a sensor's files."""
    for path in sorted((folder / "data").glob(f"*.{suffix}")):
        if re.fullmatch(r"\d{10}", path.stem):
            yield int(path.stem), path.name
