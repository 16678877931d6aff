"""PhysicalAI-Autonomous-Vehicles as a source of scenes. The dataset has no map.

Moments lie on a grid over a clip's poses, since the sensors are not synchronous: each shows what it measured last. A
label has a time of its own; a box at a moment is its track's last label, moved on by the track's velocity up to then.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from framework.data.sources.annotate import annotated, dropped, unmapped
from framework.data.sources.base import NO_PERCEPTION, UNREADABLE, Frame, RecordedLog, each_once, fault_of, walk
from framework.data.sources.physical_ai.clip import Obstacles, Recording, open_recording
from framework.data.sources.physical_ai.files import EGOMOTION, INDEX, MICROSECOND, Clip, open_index, read_index
from framework.data.sources.physical_ai.sensors import SWEEP_AGE, TURN, cameras_at, lidar_at, radar_at
from framework.data.sources.poses import newest
from framework.data.sources.shutter import Shutter
from framework.data.sources.tracks import (
    BODY_SPAN,
    SECOND,
    Body,
    Track,
    absent_bodies,
    ego_history,
    followed_future,
    has_future,
    has_history,
    seen_from,
    surroundings_of,
    track_number,
    without_leaps,
)
from framework.recipe.component import component
from framework.recipe.ranges import PositiveCount, Seconds
from framework.scene.frames import apply, invert
from framework.scene.types import Boxes, FloatArray, Scene

LICENCE = "NVIDIA Autonomous Vehicle Dataset License"
LABELS = {
    "automobile": "car",
    "heavy_truck": "truck",
    "bus": "bus",
    "trolley_bus": "bus",
    "trailer": "trailer",
    "person": "pedestrian",
    "rider": "bicycle",
    "animal": "animal",
}
"""Our class of each of the dataset's, in small letters. A rider's box includes the vehicle."""
READ = ("camera", "lidar/lidar_top_360fov", "radar", "labels/egomotion", "labels/obstacle.offline")
"""Features that are read."""
LABEL_AGE = 3 * SECOND // 20
"""Age (ns) up to which a label belongs to a moment; a track has ten a second."""
FEATURE_FOLDERS = ("camera", "lidar", "radar", "labels")
ENDINGS = ("parquet", "mp4", "timestamps.parquet")
CLIP_US = 1_000_000_000
"""A frame counts microseconds from the clip's start, and this much for each row of the index before the clip's."""


@component
@dataclass(frozen=True)
class PhysicalAI:
    """Clips of a download, a folder with `clip_index.parquet`; zip archives and unpacked files are read alike. A clip
    is a log. Validation and test clips are held out.
    """

    cameras: Sequence[str] | None = None
    """Names of the cameras to read, such as `camera_front_wide_120fov`; None reads all."""
    camera_frames: PositiveCount = 1
    """Images of each camera: the newest, and earlier ones."""
    camera_step_s: Seconds = 0.5
    """Time between these images (s)."""
    camera_age_s: Seconds = 0.1
    """How much earlier (s) than its time an image may be exposed; it never is later."""
    every_s: Seconds = 0.5
    """Time between the moments that become scenes (s)."""

    lacks: ClassVar = {"perception": NO_PERCEPTION, "thought": "nobody wrote any"}

    def find_logs(self, folder: str) -> Iterator[RecordedLog]:
        """See `RecordedDataset`."""
        yield from each_once(self._logs(folder))

    def _logs(self, folder: str) -> Iterator[RecordedLog]:
        for place, names, files in walk(folder):
            if INDEX not in files and not (place / EGOMOTION).is_dir():
                continue
            names.clear()
            try:
                clips = read_index(place)
            except UNREADABLE as error:
                yield RecordedLog(
                    place.name, (), left_out={f"download that can't be read ({fault_of(place, error)})": 1}
                )
                continue
            there = [(row, clip) for row, clip in enumerate(clips) if clip.place(EGOMOTION) is not None]
            yield from (self._log(row, clip) for row, clip in there)
            if len(there) < len(clips):
                missing = {"clip of the index that is not downloaded": len(clips) - len(there)}
                yield RecordedLog(place.name, (), left_out=missing)

    def _log(self, row: int, clip: Clip) -> RecordedLog:
        places = [clip.place(feature, ending) for feature in _features(clip) for ending in ENDINGS]
        calibration = sorted(clip.root.glob(f"calibration/*/*.chunk_{clip.chunk:04d}.parquet"))
        files = tuple(sorted({str(path) for path in (*places, *calibration) if path is not None}))
        try:
            recording = open_recording(clip)
            moments = self._moments(recording)
        except UNREADABLE as error:
            fault = f"clip that can't be read ({fault_of(f'clip {clip.name}', error)})"
            return RecordedLog(clip.name, (), clip.split, {fault: 1}, files)
        frames = tuple((str(clip.root / INDEX), row * CLIP_US + now // MICROSECOND) for now in moments)
        return RecordedLog(clip.name, frames, clip.split, self._left_out(recording, moments), files)

    def _moments(self, recording: Recording) -> list[int]:
        """Returns the times (ns) that become scenes: those with a past and a future, or with sensors and labels."""
        first, last = int(recording.poses.times[0]), int(recording.poses.times[-1])
        step = round(self.every_s * SECOND)
        start = -(-max(first, 0) // step) * step
        grid = [now for now in range(start, last + 1, step) if recording.poses.cover(np.array([now])).all()]
        is_labelled = recording.obstacles is not None and bool(recording.cameras)
        return [now for now in grid if has_history(first, now) and (has_future(now, last) or is_labelled)]

    def _left_out(self, recording: Recording, moments: Sequence[int]) -> dict[str, int]:
        """Returns what no scene shows, by name."""
        clip, at = recording.clip, np.array(moments, dtype=np.int64)
        counts = Counter(recording.faults)
        read = [feature for feature in _features(clip) if not feature.startswith(READ)]
        counts.update({f"feature that is not read: {feature}": 1 for feature in read})
        for feature, times in recording.cameras.items():
            name = Path(feature).name
            shown = len(self._shutter.seen(times, at)) if self.cameras is None or name in self.cameras else 0
            counts[f"frame of {name} that no scene shows"] = len(times) - shown
            counts["blurred_boxes of a camera"] += clip.place(feature, "blurred_boxes.parquet") is not None
        turns = newest(recording.spins, at - TURN, SWEEP_AGE)
        counts["turn of the LiDAR that no scene has"] = len(recording.spins) - len(set(turns.tolist()) - {-1})
        counts["clip without labels"] = int(recording.obstacles is None)
        counts["clip without a LiDAR"] = int(not len(recording.spins))
        counts["clip without a camera"] = int(not recording.cameras)
        return {what: count for what, count in counts.items() if count}

    @property
    def _shutter(self) -> Shutter:
        return Shutter(self.camera_frames, self.camera_step_s, self.camera_age_s)

    def read_scene(self, frame: Frame) -> Scene:
        """See `RecordedDataset`."""
        row, stamp = divmod(frame[1], CLIP_US)
        now = stamp * MICROSECOND
        recording = open_recording(open_index(str(Path(frame[0]).parent))[row])
        clip, poses = recording.clip, recording.poses
        pose, ego = poses.at(np.array([now]))[0], poses.track
        images, unread = cameras_at(recording, now, pose, self._shutter, self.cameras)
        lidar, others = lidar_at(recording, now, pose)
        radar, silent = radar_at(recording, now, pose, others)
        boxes, tracks, unknown = None, list[Track](), list[str]()
        if recording.obstacles is not None:
            boxes, tracks, unknown = _boxes(recording.obstacles, now, pose, others)
        around = None
        if recording.obstacles is not None:
            around = surroundings_of(tracks, (), ego, now, pose, _absent(recording.obstacles, now))
        future = None
        if has_future(now, int(poses.times[-1])):
            future = followed_future(ego, now, pose, f"{clip.name} at {stamp} us", others)
        return Scene(
            id=f"physical-ai-{clip.name}-{stamp}",
            kind="physical_ai",
            cameras=images,
            lidar=lidar,
            radar=radar,
            boxes=boxes,
            history=ego_history(ego, now, pose),
            future=future,
            surroundings=around,
            **annotated(boxes, future),
            provenance={
                "dataset": "PhysicalAI-Autonomous-Vehicles",
                "log": clip.name,
                "timestamp": str(now),
                "licence": LICENCE,
                **unmapped(unknown),
                **dropped(boxes, [*unread, *silent], others),
            },
        )


def _features(clip: Clip) -> list[str]:
    return [feature for folder in FEATURE_FOLDERS for feature in clip.features(folder)]


def _absent(obstacles: Obstacles, now: int) -> Iterator[Body]:
    first, end = np.searchsorted(obstacles.times, [now - LABEL_AGE, now], side="right")
    labels = np.array([str(label).lower() for label in obstacles.classes], dtype=object)
    return absent_bodies(obstacles.track[first:end], obstacles.track, labels, obstacles.sizes, obstacles.tracks, LABELS)


def _boxes(
    obstacles: Obstacles, now: int, pose: FloatArray, others: dict[str, int]
) -> tuple[Boxes, list[Track], list[str]]:
    """Returns the boxes at `now` in the ego frame `pose` `(4, 4)`, their tracks, and the classes of those left out.
    Velocities that are none are counted in `others`.
    """
    first, end = np.searchsorted(obstacles.times, [now - LABEL_AGE, now], side="right")
    last = {int(obstacles.track[row]): int(row) for row in range(int(first), int(end))}
    kinds = {track: str(obstacles.classes[row]).lower() for track, row in last.items()}
    known = [track for track in last if kinds[track] in LABELS]
    tracks = [obstacles.tracks[track] for track in known]
    values = np.zeros((len(known), 9))
    for row, track in zip(values, known, strict=True):
        past = obstacles.tracks[track].until(now)
        velocity = without_leaps(past.velocity(past.times[-1:], BODY_SPAN), others)[0]
        place = past.poses[-1].copy()
        place[:3] += np.nan_to_num(velocity) * (now - int(past.times[-1])) / SECOND
        row[:3], row[6] = apply(invert(pose), place[:3]), seen_from(pose, place)[2]
        row[3:6] = obstacles.sizes[last[track]]
        row[7:9] = (velocity @ pose[:3, :3])[:2]
    ids = np.array([track_number(obstacles.names[track]) for track in known], dtype=np.int64)
    unknown = [kinds[track] for track in last if kinds[track] not in LABELS]
    return Boxes(values, tuple(LABELS[kinds[track]] for track in known), track_ids=ids), tracks, unknown
