"""A clip in memory: the ego's poses, what was labelled around it, and when each sensor measured."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from framework.data.sources.physical_ai.files import (
    EGOMOTION,
    EXTRINSICS,
    INTRINSICS,
    LIDAR,
    MICROSECOND,
    OBSTACLES,
    Clip,
    numbers,
)
from framework.data.sources.poses import Poses, ordered_poses, unit_quaternions, yaws
from framework.data.sources.tracks import Nanoseconds, Track, once_a_time
from framework.scene.check import are_extents
from framework.scene.frames import quaternion_rotation
from framework.scene.types import FloatArray, SceneError

POSE = ("qw", "qx", "qy", "qz", "x", "y", "z")
OBSTACLE = [f"orientation_{axis}" for axis in "wxyz"] + [
    f"{part}_{axis}" for part in ("center", "size") for axis in "xyz"
]


@dataclass(frozen=True, slots=True)
class Obstacles:
    """The labelled obstacles, in the order of time."""

    times: Nanoseconds
    """`(n,)`; each label has a time of its own."""
    classes: npt.NDArray[np.object_]
    """The dataset's class of each, `(n,)`."""
    sizes: FloatArray
    """Length, width and height, `(n, 3)` (m)."""
    track: npt.NDArray[np.int64]
    """Index in `names` of each, `(n,)`."""
    names: tuple[str, ...]
    """The track ids."""
    tracks: tuple[Track, ...]
    """Centres and headings over ground, of each of `names`."""
    faulty: int
    """Labels that are left out: their quaternion, centre or size is none."""
    outside: int
    """Labels that are left out: no pose is near their time."""
    repeated: int
    """Labels that are left out: their track has another one at the same time."""


@dataclass(frozen=True, slots=True)
class Recording:
    """A clip in memory."""

    clip: Clip
    """Its files."""
    poses: Poses
    """Vehicle to the frame of the clip's start."""
    obstacles: Obstacles | None
    """The labels; None where they are not downloaded."""
    cameras: Mapping[str, Nanoseconds]
    """Times of each camera's frames."""
    spins: Nanoseconds
    """Starts of the LiDAR's turns; none where it is not downloaded."""
    radars: tuple[str, ...]
    """The radars that are there."""
    faults: Mapping[str, int]
    """What can't be read, by what is wrong."""


def read_poses(clip: Clip) -> Poses:
    """Returns the ego's poses. Raises `SceneError` where there is none."""
    times, *columns = clip.columns(EGOMOTION, ("timestamp", *POSE))
    values = np.stack(columns, axis=1).astype(np.float64)
    source = f"{clip.archive(EGOMOTION)}: {clip.name}"
    return ordered_poses(
        times.astype(np.int64) * MICROSECOND, values[:, :4], values[:, 4:], source, "download it again"
    )


def read_obstacles(clip: Clip, poses: Poses) -> Obstacles | None:
    """Returns the labels that lie within the poses; None where they are not downloaded. A label is in the vehicle's
    frame at its own time. Raises `SceneError` where a column is missing.
    """
    if clip.place(OBSTACLES) is None:
        return None
    table = clip.table(OBSTACLES)
    stamps, *columns = numbers(table, ["timestamp_us", *OBSTACLE], f"{clip.archive(OBSTACLES)}: {clip.name}")
    if missing := {"track_id", "label_class"} - set(table.schema.names):
        raise SceneError(
            f"{clip.archive(OBSTACLES)}: column {', '.join(sorted(missing))}: is missing; download it again"
        )
    values, times = np.stack(columns, axis=1).astype(np.float64), stamps.astype(np.int64) * MICROSECOND
    quaternions, sound = unit_quaternions(values[:, :4])
    sound &= np.isfinite(values).all(axis=1) & are_extents(values[:, 4:7], values[:, 7:])
    covered = poses.cover(times) & (times <= poses.times[-1])
    chosen = np.flatnonzero(sound & covered)
    chosen = chosen[np.argsort(times[chosen], kind="stable")]
    at = times[chosen]
    frames = poses.at(at) if len(at) else np.zeros((0, 4, 4))
    centres = np.einsum("nij,nj->ni", frames[:, :3, :3], values[chosen, 4:7]) + frames[:, :3, 3]
    over_ground = np.c_[centres, yaws(frames[:, :3, :3] @ quaternion_rotation(quaternions[chosen]))]
    ids = np.array([str(each) for each in table["track_id"].to_pylist()], dtype=object)[chosen]
    names, track = np.unique(ids.astype(str), return_inverse=True)
    once = once_a_time(at, track.astype(np.int64), centres)
    repeated, chosen, at, over_ground, track = (
        int((~once).sum()),
        chosen[once],
        at[once],
        over_ground[once],
        track[once],
    )
    members = [np.flatnonzero(track == one) for one in range(len(names))]
    kinds = np.array(table["label_class"].to_pylist(), dtype=object)[chosen]
    return Obstacles(
        times=at,
        classes=kinds,
        sizes=values[chosen, 7:],
        track=track.astype(np.int64),
        names=tuple(names.tolist()),
        tracks=tuple(Track(at[rows], over_ground[rows]) for rows in members),
        faulty=int((~sound).sum()),
        outside=int((sound & ~covered).sum()),
        repeated=repeated,
    )


@functools.lru_cache(maxsize=2)
def open_recording(clip: Clip) -> Recording:
    """Returns a clip; cached, since its moments are read in sequence. Raises `SceneError` without poses."""
    poses = read_poses(clip)
    faults: Counter[str] = Counter(poses.faults)
    obstacles = None
    try:
        obstacles = read_obstacles(clip, poses)
        if obstacles is not None:
            faults["obstacle whose quaternion, centre or size is none"] = obstacles.faulty
            faults["obstacle at a time without a pose"] = obstacles.outside
            faults["obstacle whose track_id names another one of the same time"] = obstacles.repeated
    except SceneError as error:
        faults[f"labels that can't be read ({error})"] = 1
    cameras = {}
    for camera in clip.features("camera"):
        try:
            cameras[camera] = clip.stamps(camera)
        except SceneError as error:
            faults[f"camera that can't be read ({error})"] = 1
    spins = np.zeros(0, dtype=np.int64)
    if clip.place(LIDAR) is not None:
        try:
            spins = clip.stamps(LIDAR, "reference_timestamp", "parquet")
        except SceneError as error:
            faults[f"LiDAR that can't be read ({error})"] = 1
    return Recording(clip, poses, obstacles, cameras, spins, tuple(clip.features("radar")), +faults)


def calibration_of(clip: Clip, sensors: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any], dict[str, str]]:
    """Returns the rows of intrinsics and extrinsics of sensors by name, and what is wrong with the others."""
    found: list[dict[str, Any]] = []
    faults: dict[str, str] = {}
    for feature in (INTRINSICS, EXTRINSICS):
        try:
            found.append(clip.calibration(feature))
        except SceneError as error:
            found.append({})
            faults |= dict.fromkeys(sensors, str(error))
    return found[0], found[1], faults
