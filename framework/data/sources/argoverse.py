"""The Argoverse 2 sensor dataset: nine cameras, two LiDARs, driven trajectories, annotated tracks and the vector map.

A moment is an annotated time; in a log without annotations (the test split) the time of a sweep. Cameras show what was
exposed up to the moment. Both LiDARs come merged in one sweep; the provenance counts the points of each.

A sweep is named by its *start*: its returns are up to 0.1 s later, compensated for the vehicle's motion. Annotations
describe the sweep of their own time, all of which is later than the moment: by default a scene has the one before.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from framework.data.sources.annotate import annotated, dropped, unmapped
from framework.data.sources.argoverse_cameras import Rig, cameras_at, read_rig
from framework.data.sources.argoverse_log import (
    ANNOTATIONS,
    AXLE_HEIGHT_M,
    CAMERAS,
    EXTRINSICS,
    GROUND,
    INTRINSICS,
    LIDAR,
    POSES,
    Annotations,
    Files,
    count_lidars,
    drivable_areas,
    find_folders,
    list_files,
    read_annotations,
    read_poses,
    read_sweep,
    sweep_at,
)
from framework.data.sources.argoverse_survey import survey_log
from framework.data.sources.base import (
    NO_PERCEPTION,
    UNREADABLE,
    Frame,
    LogSplit,
    RecordedLog,
    SweepRule,
    each_once,
    fault_of,
)
from framework.data.sources.poses import Poses
from framework.data.sources.shutter import Shutter
from framework.data.sources.tracks import (
    BODY_SPAN,
    NO_PATH,
    Body,
    Track,
    absent_bodies,
    ego_future,
    ego_history,
    has_future,
    has_history,
    surroundings_of,
    without_leaps,
)
from framework.recipe.component import component
from framework.recipe.ranges import PositiveCount, Seconds
from framework.scene.frames import invert
from framework.scene.types import Boxes, FloatArray, Lidar, Scene, SceneError

LICENCE = "CC BY-NC-SA 4.0"
FAULTY_BOX = "box whose quaternion, centre, size, number of points or track is none"
REPEATED_BOX = f"box whose track_uuid names another box of the same time ({ANNOTATIONS})"
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


@dataclass(frozen=True, slots=True)
class Log:
    """A log in memory."""

    folder: Path
    """Where it lies."""
    files: Files
    """What it consists of."""
    poses: Poses
    """The ego's poses."""
    ego: Track
    """The same as a track."""
    annotations: Annotations | None
    """The boxes; None in the test split."""
    rig: Rig
    """The cameras' calibration."""
    areas: tuple[FloatArray, ...]
    """Drivable polygons `(m, 3)` in the city's frame."""


@component
@dataclass(frozen=True)
class Argoverse:
    """Logs of the Argoverse 2 sensor dataset, each a folder as published. The folders `train`, `val` and `test` are its
    splits.
    """

    cameras: Sequence[str] | None = None
    """Names of the cameras to read; None reads all, which are nine."""
    camera_frames: PositiveCount = 1
    """Images of each camera: the newest, and earlier ones."""
    camera_step_s: Seconds = 0.5
    """Time between these images (s)."""
    camera_age_s: Seconds = 0.1
    """How much earlier (s) than its time an image may be exposed; it never is later."""
    sweep: SweepRule = "past"
    """The LiDAR's sweep: `past` the one before the moment, without the returns that come after it, so that no input is
    later; `annotated` the one that starts at the moment. The official detection task describes the latter and is scored
    with it, but forbids no detector to know less: take `annotated` to compare with its figures, in training and in
    evaluation alike."""

    lacks: ClassVar = {"radar": "the vehicle has none", "perception": NO_PERCEPTION, "thought": "nobody wrote any"}

    def find_logs(self, folder: str) -> Iterator[RecordedLog]:
        """See `RecordedDataset`."""
        yield from each_once(self._logs(folder))

    def _logs(self, folder: str) -> Iterator[RecordedLog]:
        for log in find_folders(folder):
            try:
                frames, left_out = survey_log(log, self._shutter, self.cameras, self.sweep)
            except UNREADABLE as error:
                frames, left_out = (), {f"log that can't be read ({fault_of(log, error)})": 1}
            parts = (POSES, ANNOTATIONS, INTRINSICS, EXTRINSICS, "map", LIDAR, CAMERAS)
            images = sorted((log / CAMERAS).glob("*"))
            files = tuple(str(path) for path in (*(log / part for part in parts), *images) if path.exists())
            yield RecordedLog(log.name, frames, official_split(log), left_out, files)

    def read_scene(self, frame: Frame) -> Scene:
        """See `RecordedDataset`."""
        now = frame[1]
        log = _open(str(Path(frame[0]).parent))
        pose = log.poses.at(np.array([now]))[0] @ GROUND
        images, unread = cameras_at(log.folder, log.files, log.rig, log.poses, now, self._shutter, self.cameras)
        lidar, others, lidars = self._lidar(log, now, pose)
        boxes: Boxes | None = None
        tracks: list[Track] = []
        unknown: list[str] = []
        if log.annotations is not None:
            boxes, tracks, unknown = _boxes(log.annotations, now, pose, others)
            for what, times in ((FAULTY_BOX, log.annotations.faulty), (REPEATED_BOX, log.annotations.repeated)):
                if count := int((times == now).sum()):
                    others[what] = count
        future = None
        if has_future(now, int(log.poses.times[-1])):
            try:
                future = ego_future(log.ego, now, pose, f"{log.folder.name} at {now}")
            except SceneError:
                if not images and lidar is None:
                    raise
                others[NO_PATH] = 1
        has_past = has_history(int(log.poses.times[0]), now)
        # Without annotations nobody knows who else is there: a simulation would take the road for empty.
        around = None
        if log.annotations is not None:
            around = surroundings_of(tracks, log.areas, log.ego, now, pose, _absent(log.annotations, now))
        return Scene(
            id=f"argoverse-{log.folder.name}-{now}",
            kind="argoverse",
            cameras=images,
            lidar=lidar,
            boxes=boxes,
            history=ego_history(log.ego, now, pose) if has_past else None,
            future=future,
            surroundings=around,
            **annotated(None if boxes is None else boxes.visible(), future),
            provenance={
                "dataset": "Argoverse 2 sensor",
                "log": log.folder.name,
                "timestamp": str(now),
                "licence": LICENCE,
                **lidars,
                **unmapped(unknown),
                **dropped(boxes, unread, others),
            },
        )

    @property
    def _shutter(self) -> Shutter:
        return Shutter(self.camera_frames, self.camera_step_s, self.camera_age_s)

    def _lidar(self, log: Log, now: int, pose: FloatArray) -> tuple[Lidar | None, dict[str, int], dict[str, str]]:
        """Returns the sweep of a moment, what is left out of it by name, and how many points each LiDAR has, for the
        provenance.
        """
        at = sweep_at(log.files.sweeps, np.array([now]), self.sweep)[0]
        if at < 0:
            return None, {"sensor lidar (no sweep of the moment)": 1} if len(log.files.sweeps) else {}, {}
        start = int(log.files.sweeps[at])
        try:
            sweep = read_sweep(log.folder / LIDAR / f"{start}.feather")
        except SceneError as error:
            return None, {f"sensor lidar ({error})": 1}, {}
        left_out, known = dict(sweep.left_out), np.ones(len(sweep.points), dtype=bool)
        if self.sweep == "past":
            known = start + sweep.after <= now
            if later := int((~known).sum()):
                left_out["LiDAR point after the moment"] = later
        place = invert(GROUND) if start == now else invert(pose) @ log.poses.at(np.array([start]), now)[0]
        lidars = {"lidars": json.dumps(count_lidars(sweep.lasers[known]))}
        return Lidar(sweep.points[known], place), left_out, lidars


def official_split(log: Path) -> LogSplit | None:
    """Returns the split of a log in a folder `train`, `val` or `test`; None in any other. Test is held out."""
    return {"train": "train", "val": "held_out", "test": "held_out"}.get(log.parent.name)  # type: ignore[return-value]


def _boxes(
    annotations: Annotations, now: int, pose: FloatArray, others: dict[str, int]
) -> tuple[Boxes, list[Track], list[str]]:
    """Returns the boxes at `now` in the ego frame `pose` `(4, 4)`, their tracks, and the categories of those left
    out. Velocities that are none are counted in `others`.
    """
    rows = np.flatnonzero(annotations.times == now)
    unknown = [str(label) for label in annotations.labels[rows] if label not in LABELS]
    rows = rows[np.array([label in LABELS for label in annotations.labels[rows]], dtype=bool)]
    tracks = [annotations.tracks[track] for track in annotations.track[rows]]
    values = annotations.values[rows]
    values[:, 2] += AXLE_HEIGHT_M
    over_ground = [track.until(now).velocity(np.array([now]), BODY_SPAN)[0] for track in tracks]
    velocity = without_leaps(np.array(over_ground, dtype=np.float64).reshape(-1, 3), others) @ pose[:3, :3]
    boxes = Boxes(
        np.c_[values, velocity[:, :2]],
        tuple(LABELS[label] for label in annotations.labels[rows]),
        track_ids=annotations.numbers[annotations.track[rows]],
        points=annotations.points[rows],
    )
    return boxes, tracks, unknown


def _absent(annotations: Annotations, now: int) -> Iterator[Body]:
    present = annotations.track[annotations.times == now]
    sizes = annotations.values[:, 3:6]
    return absent_bodies(present, annotations.track, annotations.labels, sizes, annotations.tracks, LABELS)


@functools.lru_cache(maxsize=1)
def _open(folder: str) -> Log:
    """Returns a log; cached, since its frames are read in sequence."""
    path = Path(folder)
    files, poses = list_files(path), read_poses(path)
    boxes, areas = read_annotations(path, poses), drivable_areas(files.map)
    return Log(path, files, poses, poses.track, boxes, read_rig(path), areas)
