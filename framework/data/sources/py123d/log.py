"""A 123D log in memory: the ego's poses, the boxes as tracks over ground, and the tables of the sensors.

Our ego frame lies below the rear axle, on the ground: the log says where the axle is from the IMU, and how far the
vehicle's body reaches down.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from framework.data.sources.base import LogSplit
from framework.data.sources.poses import Poses, ordered_poses, unit_quaternions, yaws
from framework.data.sources.py123d.labels import names_of
from framework.data.sources.py123d.rig import Mount, mount_of, transform
from framework.data.sources.py123d.road import Road, read_road
from framework.data.sources.py123d.tables import BOXES, CAMERA, EGO, LIDAR, LIGHTS, MAP, SYNC, Table, read_table
from framework.data.sources.tracks import Nanoseconds, Track, once_a_time
from framework.scene.check import are_extents
from framework.scene.frames import quaternion_rotation, rigid
from framework.scene.types import FloatArray, SceneError

SPLITS: Mapping[str, LogSplit] = {"train": "train", "val": "held_out", "test": "held_out"}
BOX = 10
"""Numbers of a box: x, y, z, qw, qx, qy, qz, length, width, height, in the log's fixed frame."""


@dataclass(frozen=True, slots=True)
class Seen:
    """The boxes of a log, in the order of time."""

    times: Nanoseconds
    """`(n,)`, ascending."""
    moments: Nanoseconds
    """`(m,)`: the times of all rows, those without a box too."""
    labels: npt.NDArray[np.object_]
    """The dataset's class of each, `(n,)`."""
    sizes: FloatArray
    """Length, width and height `(n, 3)` (m)."""
    points: npt.NDArray[np.int64]
    """LiDAR points in each `(n,)`; -1 where they are not counted."""
    track: npt.NDArray[np.int64]
    """Index in `names` of each, `(n,)`."""
    names: tuple[str, ...]
    """The tracks' tokens."""
    tracks: tuple[Track, ...]
    """Centres and headings, of each of `names`."""
    faulty: int
    """Boxes that are left out: their quaternion, centre or size is none."""
    repeated: int
    """Boxes that are left out: their track has another one at the same time."""


@dataclass(frozen=True, slots=True)
class Log:
    """A log in memory."""

    folder: Path
    """Its folder."""
    name: str
    """Its name."""
    dataset: str
    """The dataset that it is of."""
    split: LogSplit | None
    """The split that it was converted as; None for one of another name."""
    poses: Poses
    """Of the IMU, in the fixed frame."""
    ground: FloatArray
    """Our ego frame to the IMU's, `(4, 4)`."""
    seen: Seen | None
    """The boxes; None where the log has none."""
    cameras: Mapping[str, tuple[Table, Mount, Nanoseconds]]
    """Images, calibration and times of each camera."""
    lidars: Mapping[str, Table]
    """Sweeps by LiDAR."""
    road: Road
    """The map, and the lights."""
    faults: Mapping[str, int]
    """What is left out, by name."""

    @property
    def ego(self) -> Track:
        """The ego's poses as a track."""
        placed = self.poses.at(self.poses.times) @ self.ground
        return Track(self.poses.times, np.c_[placed[:, :3, 3], yaws(placed[:, :3, :3])])

    def pose(self, time: int) -> FloatArray:
        """Returns our ego frame in the fixed frame `(4, 4)`. Raises `SceneError` where no pose is near."""
        placed: FloatArray = self.poses.at(np.array([time]))[0] @ self.ground
        return placed


def read_poses(folder: Path) -> tuple[Poses, FloatArray]:
    """Returns the poses of the IMU, and our ego frame to its. Raises `SceneError` where there is none."""
    table = read_table(folder / f"{EGO}.arrow")
    values, times = table.vectors("imu_se3", 7), table.times()
    poses = ordered_poses(times, values[:, 3:], values[:, :3], f"{table.path}: imu_se3", "convert the log again")
    axle = transform(table.about.get("rear_axle_to_imu_se3"), f"{table.path}: rear_axle_to_imu_se3")
    centre = transform(table.about.get("center_to_imu_se3"), f"{table.path}: center_to_imu_se3")
    below = centre[2, 3] - float(table.about["height"]) / 2 - axle[2, 3]
    ground = axle @ rigid(np.eye(3), np.array([0.0, 0.0, below]))
    return poses, ground


def read_boxes(folder: Path) -> Seen | None:
    """Returns the boxes; None where the log has none. Raises `SceneError` where they can't be read."""
    path = folder / f"{BOXES}.arrow"
    if not path.is_file():
        return None
    table = read_table(path)
    lists = table.column("bounding_box_se3").combine_chunks()
    counts = np.asarray(lists.value_lengths().fill_null(0))
    values = np.asarray(lists.flatten().flatten(), dtype=np.float64).reshape(-1, BOX)
    moments = table.times()
    times = np.repeat(moments, counts)
    tokens, numbers = (table.column(name).combine_chunks().flatten() for name in ("track_token", "label"))
    counted = table.column("num_lidar_points").combine_chunks().flatten() if table.has("num_lidar_points") else None
    points = np.full(len(times), -1) if counted is None else np.asarray(counted.fill_null(-1))
    if {len(times)} != {len(values), len(tokens), len(numbers), len(points)}:
        raise SceneError(f"{path}: lists of one row differ in length; convert the log again")
    quaternions, sound = unit_quaternions(values[:, 3:7])
    sound &= np.isfinite(values).all(axis=1) & are_extents(values[:, :3], values[:, 7:], farthest=np.inf)
    enumeration = str(table.about.get("box_detection_label_class"))
    known = names_of(enumeration)
    labels = np.array([known.get(n, f"{enumeration} {n}") for n in numbers.to_pylist()], dtype=object)[sound]
    names, track = np.unique(np.array(tokens.to_pylist(), dtype=object).astype(str)[sound], return_inverse=True)
    poses = np.c_[values[sound, :3], yaws(quaternion_rotation(quaternions[sound]))]
    at = times[sound]
    once = once_a_time(at, track.astype(np.int64), poses[:, :3])
    repeated, at, poses, track, labels = int((~once).sum()), at[once], poses[once], track[once], labels[once]
    members = [np.flatnonzero(track == one) for one in range(len(names))]
    return Seen(
        times=at,
        moments=np.unique(moments),
        labels=labels,
        sizes=values[sound, 7:][once],
        points=points[sound][once].astype(np.int64),
        track=track.astype(np.int64),
        names=tuple(names.tolist()),
        tracks=tuple(Track(at[rows], poses[rows]) for rows in members),
        faulty=int((~sound).sum()),
        repeated=repeated,
    )


@functools.lru_cache(maxsize=1)
def open_log(folder: str) -> Log:
    """Returns a log; cached, since its moments are read in sequence. Raises `SceneError` without poses or a
    description.
    """
    path = Path(folder)
    about = read_table(path / f"{SYNC}.arrow").about
    poses, ground = read_poses(path)
    faults: Counter[str] = Counter(poses.faults)
    seen = None
    try:
        seen = read_boxes(path)
    except SceneError as error:
        faults[f"boxes that can't be read ({error})"] = 1
    if seen is not None and seen.faulty:
        faults["box whose quaternion, centre or size is none"] = seen.faulty
    if seen is not None and seen.repeated:
        faults[f"box whose track_token names another box of the same time ({BOXES}.arrow)"] = seen.repeated
    cameras, lidars = {}, {}
    for file in sorted(path.glob("*.arrow")):
        try:
            if file.stem.startswith(CAMERA):
                table = read_table(file)
                cameras[file.stem.removeprefix(CAMERA)] = (table, mount_of(table.about, str(file)), table.times())
            elif file.stem.startswith(LIDAR):
                lidars[file.stem.removeprefix(LIDAR)] = read_table(file)
            elif file.stem not in (SYNC, EGO, BOXES, LIGHTS, MAP):
                faults[f"modality that is not read: {file.stem}"] = 1
        except SceneError as error:
            faults[f"sensor that can't be read ({error})"] = 1
    dataset, split = str(about.get("dataset")), str(about.get("split"))
    road, unread = read_road(path, dataset, about.get("location"), poses.positions)
    faults.update(unread)
    name = str(about.get("log_name") or path.name)
    official = SPLITS.get(split.rpartition("_")[2])
    return Log(path, name, dataset, official, poses, ground, seen, cameras, lidars, road, faults)
