"""Logs of the Argoverse 2 sensor dataset: driven trajectories, annotated tracks and the vector map.

A log's `egovehicle` frame differs from ours in height alone: its origin is the rear axle itself. Sweeps are
motion-compensated in it.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from pyarrow import feather

from framework.data.sources.annotate import caption_of, command_of, dropped, questions_of, unmapped
from framework.data.sources.base import Frame, LogSplit, RecordedLog
from framework.data.sources.tracks import (
    BODY_SPAN,
    LONGEST_GAP,
    Nanoseconds,
    Track,
    ego_future,
    ego_history,
    has_future,
    has_history,
    surroundings_of,
    track_number,
)
from framework.recipe.component import component
from framework.scene.frames import quaternion_rotation, rigid
from framework.scene.types import Boxes, FloatArray, Lidar, Scene, SceneError

LICENCE = "CC BY-NC-SA 4.0"
AXLE_HEIGHT_M = 0.33
"""Height of the rear axle above the ground, measured in the sweeps."""
LABELS = {
    "REGULAR_VEHICLE": "car",
    "LARGE_VEHICLE": "truck",
    "BOX_TRUCK": "truck",
    "TRUCK": "truck",
    "TRUCK_CAB": "truck",
    "BUS": "bus",
    "SCHOOL_BUS": "bus",
    "ARTICULATED_BUS": "bus",
    "VEHICULAR_TRAILER": "trailer",
    "MOTORCYCLE": "motorcycle",
    "BICYCLE": "bicycle",
    "PEDESTRIAN": "pedestrian",
    "OFFICIAL_SIGNALER": "pedestrian",
    "WHEELCHAIR": "pedestrian",
    "BICYCLIST": "pedestrian",
    "MOTORCYCLIST": "pedestrian",
    "WHEELED_RIDER": "pedestrian",
    "CONSTRUCTION_CONE": "traffic_cone",
    "CONSTRUCTION_BARREL": "barrier",
    "DOG": "animal",
    "ANIMAL": "animal",
}
"""Our class of each of the dataset's. Riders have boxes of their own, next to their vehicles'."""

QUATERNION, TRANSLATION, SIZE = ("qw", "qx", "qy", "qz"), ("tx_m", "ty_m", "tz_m"), ("length_m", "width_m", "height_m")


@dataclass(frozen=True, slots=True)
class Log:
    """A log in memory: `k` poses of the ego and `n` annotations."""

    times: Nanoseconds
    """Of the poses, `(k,)`, ascending."""
    quaternions: FloatArray
    """Rotations from ego to city, `(k, 4)`: w, x, y, z."""
    positions: FloatArray
    """The ego in the city's frame, `(k, 3)` (m)."""
    ego: Track
    """The same poses as a track."""
    at: Nanoseconds
    """Of the annotations, `(n,)`, ascending."""
    track: npt.NDArray[np.int64]
    """Index in `tracks` of each annotation, `(n,)`."""
    labels: npt.NDArray[np.object_]
    """The dataset's class of each annotation, `(n,)`."""
    values: FloatArray
    """Centre, size and yaw of each box, `(n, 7)` in the egovehicle frame."""
    points: npt.NDArray[np.int64]
    """LiDAR points in each box, `(n,)`."""
    numbers: npt.NDArray[np.int64]
    """The track id of each of `tracks`, see `track_number`."""
    tracks: tuple[Track, ...]
    """Tracks over ground, in the city's frame."""
    areas: tuple[FloatArray, ...]
    """Drivable polygons `(m, 3)` in the city's frame."""


@component
@dataclass(frozen=True)
class Argoverse:
    """Logs of the Argoverse 2 sensor dataset, each in a folder with its `annotations.feather`. The folders `train` and
    `val` are its splits.
    """

    lacks: ClassVar = {"cameras": "they are not read", "radar": "the vehicle has none"}

    def find_logs(self, folder: str) -> Iterator[RecordedLog]:
        """See `RecordedDataset`."""
        for path in sorted(Path(folder).rglob("annotations.feather")):
            moments = list(_moments(path))
            frames = tuple((str(path), now) for now, is_used in moments if is_used)
            unused = len(moments) - len(frames)
            left_out = {"frame without a past, a future and a sweep": unused} if unused else {}
            yield RecordedLog(path.parent.name, frames, official_split(path.parent), left_out)

    def read_scene(self, frame: Frame) -> Scene:
        """See `RecordedDataset`."""
        return read_scene(frame)


def official_split(log: Path) -> LogSplit | None:
    """Returns the split of a log in a folder `train`, `val` or `test`; None in any other. Test is held out."""
    return {"train": "train", "val": "held_out", "test": "held_out"}.get(log.parent.name)  # type: ignore[return-value]


def find_frames(folder: Path) -> list[Frame]:
    """Returns every annotated frame below `folder` that has a scene's past and future, or a sweep: the table of
    annotations and the timestamp (ns).
    """
    return [frame for log in Argoverse().find_logs(str(folder)) for frame in log.frames]


def _moments(path: Path) -> Iterator[tuple[int, bool]]:
    """Yields the times (ns) of a table of annotations, and whether each can become a scene."""
    poses = path.with_name("city_SE3_egovehicle.feather")
    driven = _timestamps(poses) if poses.is_file() else np.zeros(0, dtype=np.int64)
    for now in np.unique(_timestamps(path)).tolist():
        has_both = len(driven) > 0 and has_history(int(driven.min()), now) and has_future(now, int(driven.max()))
        yield now, has_both or (len(driven) > 0 and _sweep(path, now).is_file())


def _timestamps(path: Path) -> Nanoseconds:
    column = feather.read_table(path, columns=["timestamp_ns"])["timestamp_ns"]
    return np.asarray(column.to_numpy(), dtype=np.int64)


def read_scene(frame: Frame) -> Scene:
    """Returns the scene of a frame: boxes with track ids and velocities, the ego's motion, the map, and the sweep if
    there is one.
    """
    path, now = Path(frame[0]), frame[1]
    log, name = _open(frame[0]), path.parent.name
    pose = _transforms(log, np.array([now]))[0] @ rigid(np.eye(3), np.array([0.0, 0.0, -AXLE_HEIGHT_M]))
    rows = np.flatnonzero(log.at == now)
    known = rows[[label in LABELS for label in log.labels[rows]]]
    boxes = _boxes(log, known, now, pose)
    future = None
    if has_future(now, int(log.times[-1])):
        future = ego_future(log.ego, now, pose, f"{name} at {now}")
    return Scene(
        id=f"argoverse-{name}-{now}",
        kind="argoverse",
        lidar=_lidar(_sweep(path, now)),
        boxes=boxes,
        history=ego_history(log.ego, now, pose) if has_history(int(log.times[0]), now) else None,
        future=future,
        surroundings=surroundings_of([log.tracks[i] for i in log.track[known]], log.areas, log.ego, now, pose),
        command="follow" if future is None else command_of(future),
        questions=questions_of(boxes.visible()),
        caption=caption_of(boxes.visible()),
        provenance={
            "dataset": "Argoverse 2 sensor",
            "log": name,
            "timestamp": str(now),
            "licence": LICENCE,
            **unmapped([label for label in log.labels[rows] if label not in LABELS]),
            **dropped(boxes, _unread_cameras(path)),
        },
    )


def drivable_areas(archive: Path) -> tuple[FloatArray, ...]:
    """Returns the drivable polygons `(k, 3)` of a vector map, in the city's frame."""
    areas = json.loads(archive.read_text())["drivable_areas"].values()
    return tuple(np.array([[p["x"], p["y"], p["z"]] for p in area["area_boundary"]]) for area in areas)


def _boxes(log: Log, rows: npt.NDArray[np.int64], now: int, pose: FloatArray) -> Boxes:
    values = log.values[rows]
    values[:, 2] += AXLE_HEIGHT_M
    moment = np.array([now])
    over_ground = [log.tracks[track].until(now).velocity(moment, BODY_SPAN)[0] for track in log.track[rows]]
    velocity = np.array(over_ground, dtype=np.float64).reshape(-1, 3) @ pose[:3, :3]
    labels = tuple(LABELS[label] for label in log.labels[rows])
    numbers = log.numbers[log.track[rows]]
    return Boxes(np.c_[values, velocity[:, :2]], labels, track_ids=numbers, points=log.points[rows])


def _lidar(path: Path) -> Lidar | None:
    if not path.is_file():
        return None
    table = feather.read_table(path)
    points = np.stack([table[axis].to_numpy().astype(np.float32) for axis in ("x", "y", "z", "intensity")], axis=1)
    points[:, 3] /= 255.0
    return Lidar(points, rigid(np.eye(3), np.array([0.0, 0.0, AXLE_HEIGHT_M])))


def _sweep(annotations: Path, now: int) -> Path:
    return annotations.parent / "sensors" / "lidar" / f"{now}.feather"


def _unread_cameras(annotations: Path) -> list[str]:
    """Returns the cameras of the log, of which none is read."""
    return sorted(path.name for path in (annotations.parent / "sensors" / "cameras").glob("*") if path.is_dir())


@functools.lru_cache(maxsize=1)
def _open(path: str) -> Log:
    """Returns the log of a table of annotations; cached, since the frames of a log are read in sequence."""
    annotations = Path(path)
    poses = feather.read_table(annotations.with_name("city_SE3_egovehicle.feather")).sort_by("timestamp_ns")
    times, first = np.unique(poses["timestamp_ns"].to_numpy(), return_index=True)
    quaternions, positions = _columns(poses, QUATERNION)[first], _columns(poses, TRANSLATION)[first]
    ego = Track(times, np.c_[positions, _yaw(quaternion_rotation(quaternions))])
    table = feather.read_table(annotations).sort_by("timestamp_ns")
    at = table["timestamp_ns"].to_numpy()
    names, track = np.unique(table["track_uuid"].to_numpy(zero_copy_only=False).astype(str), return_inverse=True)
    rotations, centres = quaternion_rotation(_columns(table, QUATERNION)), _columns(table, TRANSLATION)
    archives = sorted(annotations.parent.glob("map/log_map_archive_*.json"))
    log = Log(
        times=times,
        quaternions=quaternions,
        positions=positions,
        ego=ego,
        at=at,
        track=track.astype(np.int64),
        labels=table["category"].to_numpy(zero_copy_only=False),
        values=np.c_[centres, _columns(table, SIZE), _yaw(rotations)],
        points=table["num_interior_pts"].to_numpy(),
        numbers=np.array([track_number(name) for name in names.tolist()], dtype=np.int64),
        tracks=(),
        areas=drivable_areas(archives[0]) if archives else (),
    )
    return _with_tracks(log, rotations, centres)


def _with_tracks(log: Log, rotations: FloatArray, centres: FloatArray) -> Log:
    """Returns the log with its tracks over ground, in the city's frame."""
    frames = _transforms(log, log.at)
    moved = np.einsum("nij,nj->ni", frames[:, :3, :3], centres) + frames[:, :3, 3]
    poses = np.c_[moved, _yaw(frames[:, :3, :3] @ rotations)]
    members = [np.flatnonzero(log.track == number) for number in range(log.track.max() + 1)]
    return replace(log, tracks=tuple(Track(log.at[rows], poses[rows]) for rows in members))


def _transforms(log: Log, times: Nanoseconds) -> FloatArray:
    """Returns ego to city `(n, 4, 4)` at `times`: the log's pose of that time, or else its last two poses carried on,
    which are milliseconds old. No later pose is read.
    """
    right = np.searchsorted(log.times, times, side="right") - 1
    if (right < 0).any() or (times - log.times[right] > LONGEST_GAP).any():
        raise SceneError("poses: the annotations extend beyond them; restore city_SE3_egovehicle.feather")
    left = np.maximum(right - 1, 0)
    span = np.maximum(log.times[right] - log.times[left], 1)
    share = (np.where(left < right, times - log.times[left], 0) / span)[:, None]
    before, after = log.quaternions[left], log.quaternions[right]
    after = np.where((before * after).sum(axis=1, keepdims=True) < 0, -after, after)
    quaternion = before + share * (after - before)
    transforms = np.tile(np.eye(4), (len(times), 1, 1))
    transforms[:, :3, :3] = quaternion_rotation(quaternion / np.linalg.norm(quaternion, axis=1, keepdims=True))
    transforms[:, :3, 3] = log.positions[left] + share * (log.positions[right] - log.positions[left])
    return transforms


def _columns(table: Any, names: tuple[str, ...]) -> FloatArray:
    return np.stack([table[name].to_numpy() for name in names], axis=1)


def _yaw(rotations: FloatArray) -> FloatArray:
    return np.arctan2(rotations[:, 1, 0], rotations[:, 0, 0])
