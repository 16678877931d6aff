"""123D's logs as a source of scenes: nuPlan, Waymo, PandaSet, KITTI-360 and others, as py123d converts them.

Moments are rows of the boxes, or of the ego where there are none. Sensors show what they measured up to the moment, by
their own times; a sweep has ended by then. Stored velocities of boxes may look ahead: ours follow from the tracks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from framework.data.sources.annotate import annotated, dropped, unmapped
from framework.data.sources.base import NO_PERCEPTION, UNREADABLE, Frame, RecordedLog, each_once, fault_of, walk
from framework.data.sources.camera import checked
from framework.data.sources.image import check_image
from framework.data.sources.points import BROKEN
from framework.data.sources.poses import newest
from framework.data.sources.py123d.labels import LABELS
from framework.data.sources.py123d.log import Log, Seen, open_log
from framework.data.sources.py123d.rig import Mount, transform
from framework.data.sources.py123d.tables import EGO, MICROSECOND, SYNC, Table, decode_points
from framework.data.sources.shutter import Shutter
from framework.data.sources.tracks import (
    BODY_SPAN,
    SECOND,
    Nanoseconds,
    Track,
    absent_bodies,
    ego_history,
    followed_future,
    has_future,
    has_history,
    near_boxes,
    seen_from,
    surroundings_of,
    track_number,
    without_leaps,
)
from framework.data.sources.video_frames import read_frames
from framework.recipe.component import component
from framework.recipe.ranges import PositiveCount, Seconds
from framework.scene.frames import apply, invert
from framework.scene.types import Boxes, Camera, FloatArray, Lidar, Scene, SceneError, Surroundings

SWEEP_AGE = 3 * SECOND // 10
"""Age (ns) up to which the end of a sweep belongs to a moment."""
JPEG, PNG = b"\xff\xd8", b"\x89PNG"


@component
@dataclass(frozen=True)
class Py123D:
    """Logs of 123D, each a folder with `sync.arrow` and `ego_state_se3.arrow`. Images must be in the log (JPEG, PNG or
    MP4), and points as IPC or Draco. Splits are those of the conversion, by the last word of `nuplan_train`.
    """

    cameras: Sequence[str] | None = None
    """Names of the cameras to read, such as `pcam_f0`; None reads all."""
    camera_frames: PositiveCount = 1
    """Images of each camera: the newest, and earlier ones."""
    camera_step_s: Seconds = 0.5
    """Time between these images (s)."""
    camera_age_s: Seconds = 0.2
    """How much earlier (s) than its time an image may be exposed; it never is later."""
    every_s: Seconds = 0.5
    """Least time between the moments that become scenes (s)."""

    lacks: ClassVar = {
        "radar": "its tables are not read",
        "perception": NO_PERCEPTION,
        "thought": "nobody wrote any",
    }

    def find_logs(self, folder: str) -> Iterator[RecordedLog]:
        """See `RecordedDataset`."""
        yield from each_once(self._logs(folder))

    def _logs(self, folder: str) -> Iterator[RecordedLog]:
        for place, names, files in walk(folder):
            if not {f"{SYNC}.arrow", f"{EGO}.arrow"} & set(files):
                continue
            names.clear()
            paths = tuple(str(place / file) for file in files)
            try:
                log = open_log(str(place))
                moments = self._moments(log)
                left_out = self._left_out(log, moments)
            except UNREADABLE as error:
                fault = f"log that can't be read ({fault_of(place, error)})"
                yield RecordedLog(place.name, (), left_out={fault: 1}, files=paths)
                continue
            frames = tuple((str(place / f"{SYNC}.arrow"), now) for now in moments)
            if log.road.file is not None and log.road.file.parent != place:  # logs of a place share its map
                paths += (str(log.road.file),)
            yield RecordedLog(f"{log.dataset}/{log.name}", frames, log.split, left_out, paths)

    def _moments(self, log: Log) -> list[int]:
        """Returns the times (ns) that become scenes: those with a past and a future, or with sensors and boxes."""
        first, last = int(log.poses.times[0]), int(log.poses.times[-1])
        rows = log.poses.times if log.seen is None else log.seen.moments
        moments: list[int] = []
        for now in rows[log.poses.cover(rows) & (rows <= last)].tolist():
            is_sensed = log.seen is not None and bool(log.cameras or log.lidars)
            usable = has_history(first, now) and (has_future(now, last) or is_sensed)
            if usable and (not moments or now - moments[-1] >= self.every_s * SECOND - SECOND // 100):
                moments.append(now)
        return moments

    def _left_out(self, log: Log, moments: Sequence[int]) -> dict[str, int]:
        """Returns what no scene shows, by name."""
        at, counts = np.array(moments, dtype=np.int64), Counter(log.faults)
        rows = log.poses.times if log.seen is None else log.seen.moments
        counts["row between two moments, or without a past and a future"] = len(rows) - len(moments)
        for name, (_, _, times) in log.cameras.items():
            shown = len(self._shutter.seen(times, at)) if self.cameras is None or name in self.cameras else 0
            counts[f"image of {name} that no scene shows"] = len(times) - shown
        for name, table in log.lidars.items():
            used = set(newest(table.times("end_timestamp_us"), at, SWEEP_AGE).tolist()) - {-1}
            counts[f"sweep of {name} that no scene has"] = len(table.rows) - len(used)
        counts["log without boxes"] = int(log.seen is None)
        return {what: count for what, count in counts.items() if count}

    @property
    def _shutter(self) -> Shutter:
        return Shutter(self.camera_frames, self.camera_step_s, self.camera_age_s)

    def read_scene(self, frame: Frame) -> Scene:
        """See `RecordedDataset`."""
        log, now = open_log(str(Path(frame[0]).parent)), frame[1]
        pose, ego = log.pose(now), log.ego
        images, unread = self._cameras(log, now, pose)
        others: Counter[str] = Counter()
        lidar, silent = _lidar(log, now, pose, others)
        boxes, unknown, around = None, list[str](), None
        if log.seen is not None:
            boxes, tracks, unknown = _boxes(log.seen, now, pose, others)
            around = _surroundings(log, log.seen, tracks, now, pose)
        future = None
        if has_future(now, int(log.poses.times[-1])):
            future = followed_future(ego, now, pose, f"{log.name} at {now}", others)
        return Scene(
            id=f"py123d-{log.dataset}-{log.name}-{now // MICROSECOND}",
            kind="py123d",
            cameras=images,
            lidar=lidar,
            boxes=boxes,
            history=ego_history(ego, now, pose),
            future=future,
            surroundings=around,
            **annotated(None if boxes is None else boxes.visible(), future),
            provenance={
                "dataset": log.dataset,
                "log": f"{log.dataset}/{log.name}",
                "timestamp": str(now),
                "licence": "the dataset's own",
                **unmapped(unknown),
                **dropped(boxes, [*unread, *silent], +others),
            },
        )

    def _cameras(self, log: Log, now: int, pose: FloatArray) -> tuple[tuple[Camera, ...], list[str]]:
        """Returns the cameras at `now`, and of each that is left out what is wrong."""
        cameras, left_out = [], []
        for name, (table, mount, times) in log.cameras.items():
            if self.cameras is not None and name not in self.cameras:
                continue
            rows = self._shutter.choose(times, now)
            try:
                if not len(rows) or now - times[rows[-1]] > self._shutter.age_ns:
                    raise SceneError(f"no image in the {self.camera_age_s:g} s before the moment")
                frames = _images(table, rows)
                for frame in frames:
                    check_image(frame, mount.width, mount.height, str(table.path))
                place = invert(pose) @ _camera_pose(log, table, mount, int(rows[-1]), int(times[rows[-1]]))
                ages, size = (times[rows] - now) / SECOND, (mount.width, mount.height)
                camera = Camera(name, frames, ages, mount.intrinsic, place, *size, lens=mount.lens)
                cameras.append(checked(camera, str(table.path)))
            except SceneError as error:
                left_out.append(f"{name}: {error}")
        return tuple(cameras), left_out


def _images(table: Table, rows: npt.NDArray[np.int64]) -> tuple[bytes, ...]:
    """Returns encoded images. Raises `SceneError` where they are not in the log."""
    values = [table.column("data")[row].as_py() for row in rows.tolist()]
    if all(isinstance(value, int) for value in values):
        video = table.path.with_suffix(".mp4")
        return tuple(read_frames(video, values, str(video)))
    if not all(isinstance(value, bytes) and value.startswith((JPEG, PNG)) for value in values):
        what = "paths of the dataset's files" if isinstance(values[0], str) else "no JPEG or PNG"
        raise SceneError(
            f"{table.path}: data: holds {what}; convert the log with camera_store_option jpeg_binary or mp4"
        )
    return tuple(values)


def _camera_pose(log: Log, table: Table, mount: Mount, row: int, time: int) -> FloatArray:
    """Returns a camera in the fixed frame at its exposure: as stored, else by the ego's poses up to then."""
    stored = table.column("camera_to_global_se3")[row].as_py() if table.has("camera_to_global_se3") else None
    if stored is not None:
        return transform(stored, f"{table.path}: camera_to_global_se3")
    placed: FloatArray = log.poses.at(np.array([time]))[0] @ mount.to_imu
    return placed


def _lidar(log: Log, now: int, pose: FloatArray, others: Counter[str]) -> tuple[Lidar | None, list[str]]:
    """Returns the newest sweeps that ended by `now`, merged in the ego frame, and of each that is left out what is
    wrong. Points lie in the IMU's frame at the sweep's start; those that are not finite are counted in `others`.
    """
    merged, left_out = [], []
    for name, table in log.lidars.items():
        try:
            row = int(newest(table.times("end_timestamp_us"), np.array([now]), SWEEP_AGE)[0])
            if row < 0:
                raise SceneError("no sweep that ended before the moment")
            blob = table.column("data")[row].as_py()
            if not isinstance(blob, bytes):
                raise SceneError(f"{table.path}: holds paths; convert the log with lidar_store_option binary")
            points, intensity = decode_points(blob)
            place = invert(pose) @ log.poses.at(table.times()[row : row + 1], now)[0]
            rows = np.c_[apply(place, points), np.zeros(len(points)) if intensity is None else intensity]
            merged.append(rows[np.isfinite(rows).all(axis=1)])
            others[BROKEN] += len(rows) - len(merged[-1])
        except SceneError as error:
            left_out.append(f"lidar {name}: {error}")
    found = np.concatenate(merged) if merged else np.zeros((0, 4))
    return (Lidar(found.astype(np.float32), np.eye(4)) if len(found) else None), left_out


def _boxes(
    seen: Seen, now: Nanoseconds | int, pose: FloatArray, others: Counter[str]
) -> tuple[Boxes, list[Track], list[str]]:
    """Returns the boxes at `now` in the ego frame `pose` `(4, 4)`, their tracks, and the classes of those left out.
    Velocities that are none are counted in `others`.
    """
    rows = np.flatnonzero(seen.times == now)
    known = rows[np.array([label in LABELS for label in seen.labels[rows]], dtype=bool)]
    tracks = [seen.tracks[track] for track in seen.track[known]]
    values = np.zeros((len(known), 9))
    for value, row, track in zip(values, known, tracks, strict=True):
        past = track.until(int(now))
        value[:3] = apply(invert(pose), past.poses[-1, :3])
        value[3:6], value[6] = seen.sizes[row], seen_from(pose, past.poses[-1])[2]
        over_ground = without_leaps(past.velocity(np.array([now]), BODY_SPAN), others)
        value[7:9] = (over_ground[0] @ pose[:3, :3])[:2]
    points = seen.points[known] if (seen.points[known] >= 0).all() else None
    ids = np.array([track_number(seen.names[track]) for track in seen.track[known]], dtype=np.int64)
    names = tuple(LABELS[label] for label in seen.labels[known])
    unknown = [str(label) for label in seen.labels[rows] if label not in LABELS]
    boxes = Boxes(values, names, track_ids=ids, points=points)
    near = near_boxes(boxes, others)
    return boxes.take(near), [track for track, is_near in zip(tracks, near, strict=True) if is_near], unknown


def _surroundings(log: Log, seen: Seen, tracks: Sequence[Track], now: int, pose: FloatArray) -> Surroundings:
    absent = absent_bodies(seen.track[seen.times == now], seen.track, seen.labels, seen.sizes, seen.tracks, LABELS)
    around = surroundings_of(tracks, log.road.areas, log.ego, now, pose, absent)
    return replace(around, red_lights=log.road.red_lights(now, pose))
