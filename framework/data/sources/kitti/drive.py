"""Scenes of a KITTI drive with poses: of a raw drive, or of a sequence of the tracking benchmark.

The sensors of a frame have stamps of their own, some milliseconds apart. A moment is the latest of them, so that no
stamp of the frame is later; poses between two stamps are interpolated, or carried on from those before. Sensors and
boxes come in the ego frame of the moment: over the log's fixed frame, since the vehicle has moved since they were
stamped. Velocities of boxes follow from their tracks up to the moment.

A sweep takes 0.1 s and is stamped in the middle, when the scanner faces forward and triggers the cameras; its points
have no times. The sweep of the frame therefore ends some 0.05 s after the moment, and the frame's labels describe it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from framework.data.sources.annotate import annotated, dropped, unmapped
from framework.data.sources.base import Frame, SweepRule
from framework.data.sources.kitti.calibration import CAMERAS, VELODYNE, Rig, read_camera
from framework.data.sources.kitti.labels import LICENCE, Labelled, boxes_of, count_points, known, values_of
from framework.data.sources.points import read_points
from framework.data.sources.poses import Poses, newest, yaws
from framework.data.sources.tracks import (
    BODY_SPAN,
    SECOND,
    Nanoseconds,
    Track,
    ego_history,
    followed_future,
    has_future,
    has_history,
    track_number,
    without_leaps,
)
from framework.scene.frames import apply, invert, wrap_angle, yaw_of
from framework.scene.types import Boxes, Camera, FloatArray, Lidar, Scene, SceneError

HALF_TURN = SECOND // 20
"""Time (ns) from a sweep's stamp to its end, where the drive does not tell it."""
SYNCHRONY = SECOND // 10
"""Time (ns) by which the sensors of a frame may differ."""
SWEEP_AGE = SECOND // 10
"""Age (ns) up to which the end of a past sweep belongs to a moment."""


@dataclass(frozen=True, slots=True)
class Readings:
    """What one sensor measured, by the number of the frame."""

    folder: Path
    """Where its files are."""
    pattern: str
    """The name of a file, such as `{:010d}.png`."""
    times: Mapping[int, int]
    """Stamps (ns); numbers without one can't be used."""
    ends: Mapping[int, int] = field(default_factory=dict)
    """Times (ns) at which sweeps end, where they are told."""

    def file(self, number: int) -> Path:
        """Returns the file of a frame."""
        return self.folder / self.pattern.format(number)


@dataclass(frozen=True, slots=True)
class Drive:
    """A drive in memory."""

    name: str
    """Such as `2011_09_26_drive_0005`."""
    dataset: str
    """What the provenance calls the dataset."""
    kind: str
    """The kind of its scenes."""
    key: Path
    """The file that stands for the drive in its frames."""
    rig: Rig
    """The sensors."""
    numbers: npt.NDArray[np.int64]
    """The frames that have a pose, `(k,)`, ascending."""
    poses: Poses
    """Of the IMU, `k` of them."""
    cameras: Mapping[int, Readings]
    """By the camera's number; those that are there."""
    sweeps: Readings
    """The Velodyne's."""
    objects: Mapping[int, Sequence[Labelled]] | None
    """By the number of the frame; None in a drive without labels."""
    left_out: Mapping[str, int]
    """Rows that can't be used, by reason."""
    has_clock: bool = True
    """Whether times are measured; the tracking benchmark has none, and counts frames at 10 Hz."""

    def moments(self, numbers: npt.NDArray[np.int64]) -> Nanoseconds:
        """Returns the times (ns) of frames `(n,)`: of each the latest stamp of its sensors."""
        stamps = dict(zip(self.numbers.tolist(), self.poses.times.tolist(), strict=True))
        sensors = [*(readings.times for readings in self.cameras.values()), self.sweeps.times]
        latest = [max(stamps[n], *(times.get(n, stamps[n]) for times in sensors)) for n in numbers.tolist()]
        return np.array(latest, dtype=np.int64)

    def pose(self, time: int, known_at: int | None = None) -> FloatArray:
        """Returns ego to the fixed frame `(4, 4)` at `time` by the poses that were known at `known_at` (None: then)."""
        assert self.rig.ego_to_imu is not None
        stamp = np.array([max(time, int(self.poses.times[0]))])
        return np.asarray(self.poses.at(stamp, known_at)[0] @ self.rig.ego_to_imu)

    @property
    def ego(self) -> Track:
        """The ego's poses as a track."""
        assert self.rig.ego_to_imu is not None
        placed = self.poses.at(self.poses.times) @ self.rig.ego_to_imu
        return Track(self.poses.times, np.c_[placed[:, :3, 3], yaws(placed[:, :3, :3])])

    def chosen(self, names: Sequence[str] | None) -> dict[int, Readings]:
        """Returns the cameras of `names`; all where that is None."""
        return {n: each for n, each in self.cameras.items() if names is None or CAMERAS[n] in names}

    def swept(self, numbers: npt.NDArray[np.int64], moments: Nanoseconds, rule: SweepRule) -> list[int | None]:
        """Returns the number of the sweep that each frame `(n,)` has at its moment `(n,)`; None where there is none."""
        if rule == "annotated":
            return [number if number in self.sweeps.times else None for number in numbers.tolist()]
        listed = sorted((self.sweeps.ends.get(n, time + HALF_TURN), n) for n, time in self.sweeps.times.items())
        places = newest(np.array([end for end, _ in listed], dtype=np.int64), moments, SWEEP_AGE)
        return [listed[place][1] if place >= 0 else None for place in places.tolist()]


def tracks_of(drive: Drive) -> dict[str, Track]:
    """Returns the tracks of a drive's objects over ground, at the frames that have a pose."""
    rows: dict[str, list[tuple[int, FloatArray]]] = {}
    stamps = dict(zip(drive.numbers.tolist(), drive.poses.times.tolist(), strict=True))
    for number, objects in sorted((drive.objects or {}).items()):
        if number not in stamps:
            continue
        time = drive.sweeps.times.get(number, stamps[number])
        pose = drive.pose(time)
        for each in objects:
            heading = wrap_angle(np.array(each.values[6] + yaw_of(pose[:3, :3])))
            rows.setdefault(each.track, []).append((time, np.array([*apply(pose, each.values[:3]), heading])))
    return {name: _track(poses) for name, poses in rows.items()}


def _track(poses: Sequence[tuple[int, FloatArray]]) -> Track:
    """Returns the track of poses `(4,)` with their times (ns), which the stamps of sweeps may have out of order."""
    times, first = np.unique(np.array([time for time, _ in poses], dtype=np.int64), return_index=True)
    return Track(times, np.stack([poses[place][1] for place in first.tolist()]))


def of_frames(what: str, times: Mapping[int, int], stamps: Mapping[int, int]) -> tuple[dict[int, int], Counter[str]]:
    """Returns those of a sensor's `times` (ns) that belong to frames with a pose, whose `stamps` are given, and how
    many others there are, by what is wrong.
    """
    posed = {number: time for number, time in times.items() if number in stamps}
    near = {number: time for number, time in posed.items() if abs(time - stamps[number]) <= SYNCHRONY}
    return near, +Counter(
        {
            f"{what} without a pose": len(times) - len(posed),
            f"{what} whose time is not within {SYNCHRONY / SECOND} s of its frame's": len(posed) - len(near),
        }
    )


def survey(drive: Drive, names: Sequence[str] | None, rule: SweepRule) -> tuple[tuple[Frame, ...], dict[str, int]]:
    """Returns the frames of a drive that become scenes, and what none reads, by name. A frame becomes a scene when it
    has a past and a future, or sensors and a target: labels or a future.
    """
    cameras = drive.chosen(names)
    moments = drive.moments(drive.numbers)
    first, last = int(drive.poses.times[0]), int(drive.poses.times[-1])
    used, swept = [], set()
    sweeps = drive.swept(drive.numbers, moments, rule)
    for number, now, sweep in zip(drive.numbers.tolist(), moments.tolist(), sweeps, strict=True):
        future = has_future(now, last)
        sensed = sweep is not None or any(number in each.times for each in cameras.values())
        if (future and has_history(first, now)) or (sensed and (future or drive.objects is not None)):
            used.append(number)
            swept.add(sweep)
    left_out = Counter(drive.left_out)
    left_out["frame with neither a past and a future nor sensors and a target"] = len(moments) - len(used)
    for number, readings in drive.cameras.items():
        shown = len(readings.times.keys() & set(used)) if number in cameras else 0
        left_out[f"image of {CAMERAS[number]} that no scene shows"] = len(readings.times) - shown
        if number in drive.rig.faults:
            left_out[f"camera {CAMERAS[number]}: {drive.rig.faults[number]}"] = 1
    left_out["sweep that no scene has"] = len(drive.sweeps.times) - len(swept - {None})
    left_out["drive without labels"] = int(drive.objects is None)
    return tuple((str(drive.key), number) for number in used), dict(+left_out)


def scene_of(
    drive: Drive, tracks: Mapping[str, Track], number: int, names: Sequence[str] | None, rule: SweepRule
) -> Scene:
    """Returns the scene of a frame. Raises `SceneError` where nothing of it can be read."""
    now = int(drive.moments(np.array([number]))[0])
    pose = drive.pose(now)
    others: Counter[str] = Counter()
    cameras, unread = _cameras(drive, number, now, pose, drive.chosen(names))
    (sweep,) = drive.swept(np.array([number]), np.array([now]), rule)
    lidar, missing = _lidar(drive, sweep, now, pose, others)
    boxes, unknown = _boxes(drive, tracks, number, now, pose, others)
    ego = drive.ego
    first, last = (int(ego.times[end]) for end in (0, -1))
    history = ego_history(ego, now, pose) if has_history(first, now) else None
    if history is not None and not np.isfinite(history.states).all():
        history, others["history across a gap of the poses"] = None, 1
    future = None
    if has_future(now, last) and len(ego.until(now).times) > 1:  # its first speed follows from the past
        future = followed_future(ego, now, pose, f"{drive.name} at {number}", others)
    if not cameras and lidar is None and (history is None or future is None):
        raise SceneError(f"{drive.key}: frame {number} has nothing to show; {'; '.join([*unread, *missing])}")
    return Scene(
        id=f"{drive.kind.replace('_', '-')}-{drive.name}-{number:06d}",
        kind=drive.kind,
        cameras=cameras,
        lidar=lidar,
        boxes=boxes,
        history=history,
        future=future,
        **annotated(None if boxes is None else boxes.visible(), future),
        provenance={
            "dataset": drive.dataset,
            "log": drive.name,
            "timestamp": str(now) if drive.has_clock else "unknown",
            "licence": LICENCE,
            **unmapped(unknown),
            **dropped(boxes, [*unread, *missing], others),
        },
    )


def _cameras(
    drive: Drive, number: int, now: int, pose: FloatArray, chosen: Mapping[int, Readings]
) -> tuple[tuple[Camera, ...], list[str]]:
    """Returns the cameras of a frame, and of each that is left out what is wrong."""
    cameras, unread = [], []
    for camera, readings in chosen.items():
        time = readings.times.get(number)
        if time is None:
            unread.append(f"{CAMERAS[camera]} (no image with a time)")
            continue
        moved = invert(pose) @ drive.pose(time, now)
        try:
            cameras.append(read_camera(camera, drive.rig, readings.file(number), (now - time) / SECOND, moved))
        except (SceneError, OSError) as error:
            unread.append(f"{CAMERAS[camera]} ({error})")
    return tuple(cameras), unread


def _lidar(
    drive: Drive, number: int | None, now: int, pose: FloatArray, others: Counter[str]
) -> tuple[Lidar | None, list[str]]:
    """Returns a sweep at the moment `now`, and what is wrong where it can't be read. Its points that can't be used are
    counted in `others`.
    """
    if number is None:
        return None, ["lidar (no sweep of the moment)"] if drive.sweeps.times else []
    try:
        points = read_points(drive.sweeps.file(number), 4, others)
    except (SceneError, OSError) as error:
        return None, [f"lidar ({error})"]
    return Lidar(points, invert(pose) @ drive.pose(drive.sweeps.times[number], now) @ VELODYNE), []


def _boxes(
    drive: Drive, tracks: Mapping[str, Track], number: int, now: int, pose: FloatArray, others: Counter[str]
) -> tuple[Boxes | None, list[str]]:
    """Returns the boxes of a frame at its moment, and the classes of those left out; None in a drive without labels.
    Points are counted in the sweep that the labels describe, where it is there.
    Velocities that are none are counted in `others`.
    """
    if drive.objects is None:
        return None, []
    objects, unknown = known(drive.objects.get(number, ()))
    labelled = drive.sweeps.times.get(number, now)
    moved = invert(pose) @ drive.pose(labelled, now)
    values = values_of(objects)
    try:
        points = count_points(values, read_points(drive.sweeps.file(number), 4))
    except (SceneError, OSError):
        points = None
    over_ground = [tracks[each.track].until(now).velocity(np.array([now]), BODY_SPAN)[0] for each in objects]
    velocities = (without_leaps(np.array(over_ground).reshape(-1, 3), others) @ pose[:3, :3])[:, :2]
    values[:, :3] = apply(moved, values[:, :3])
    values[:, 6] = wrap_angle(values[:, 6] + yaw_of(moved[:3, :3]))
    ids = [track_number(f"{drive.name}/{each.track}") for each in objects]
    return boxes_of(objects, values, points, velocities, ids), unknown
