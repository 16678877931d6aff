"""LeRobotDataset v3 as a source of scenes: episodes with the ego's state, its controls and the cameras' video.

The format has neither boxes nor a map, and no calibration of cameras. A camera that our writer did not write is taken
for a level pinhole; the report says so.
"""

from __future__ import annotations

import bisect
import functools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from framework.data.sources.annotate import command_of, dropped
from framework.data.sources.base import UNREADABLE, Frame, RecordedLog, fault_of, inside, walk
from framework.data.sources.camera import checked
from framework.data.sources.image import check_image
from framework.data.sources.lerobot.drive import Columns, Drive, find_columns, read_drive
from framework.data.sources.lerobot.layout import (
    CALIBRATION,
    EPISODES,
    INFO,
    Episode,
    Feature,
    Layout,
    open_layout,
    read_layout,
    read_table,
)
from framework.data.sources.tracks import SECOND, ego_future, has_future, has_history
from framework.data.sources.video_frames import read_frames
from framework.recipe.component import component
from framework.recipe.ranges import Finite, PositiveCount, Seconds
from framework.scene.frames import rigid, yaw_rotation
from framework.scene.lens import lens_of
from framework.scene.types import Camera, FloatArray, Lens, Scene, SceneError, Trajectory

COLUMNS = {
    "x": "observation.state/x",
    "y": "observation.state/y",
    "heading": "observation.state/heading",
    "speed": "observation.state/speed",
    "acceleration": "action/acceleration",
    "curvature": "action/curvature",
    "history": "observation.history",
    "plan": "plan",
}
"""The columns that our writer writes."""
PREFIX = "observation.images."
VIEW_RAD, MOUNT = np.pi / 2, (1.5, 0.0, 1.6)
"""A camera without a calibration: its horizontal angle of view, and its place (m) in the ego frame."""
FORWARD: FloatArray = np.array([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])
"""From the axes of a camera that looks ahead to those of the ego."""


@component
@dataclass(frozen=True)
class LeRobot:
    """Datasets in LeRobot's format v3, each a folder with `meta/info.json`. An episode is a log."""

    columns: Mapping[str, str | None] = field(default_factory=lambda: dict(COLUMNS))
    """Where a dataset has what: `{speed: observation.state/speed}`. The roles x, y (m), heading (rad) and speed (m/s)
    are the ego's state, acceleration (m/s^2) and curvature (1/m) its controls from a row to the next, which the future
    follows where both are mapped. Without x and y, the path follows from speed and heading, or curvature. `history`
    and `plan` are whole trajectories, as our writer writes them. None for a role that there is not."""
    factors: Mapping[str, Finite] = field(default_factory=dict)
    """By which a role's numbers are multiplied, to the units above."""
    offsets: Mapping[str, Finite] = field(default_factory=dict)
    """What is added after that: a compass's heading has the factor -pi/180 and the offset pi/2."""
    cameras: Sequence[str] | None = None
    """Cameras to read, without `observation.images.`; None reads all."""
    camera_frames: PositiveCount = 1
    """Images of each camera: the row's, and earlier ones."""
    camera_step_s: Seconds = 0.5
    """Time between these images (s)."""
    every_s: Seconds = 0.5
    """Time between the moments that become scenes (s)."""

    lacks: ClassVar = {
        "boxes": "the format has the ego alone",
        "perception": "the format has the ego alone",
        "lidar": "the format has the ego alone",
        "radar": "the format has the ego alone",
        "surroundings": "the format has the ego alone",
        "questions": "the format has none",
        "caption": "the format has none",
        "thought": "the format has none",
    }

    def find_logs(self, folder: str) -> Iterator[RecordedLog]:
        """See `RecordedDataset`."""
        for place, names, _ in walk(folder):
            if (place / INFO).is_file() or (place / EPISODES).is_dir():
                names.clear()
                try:
                    layout = read_layout(place)
                    columns = find_columns(layout, self.columns)
                    logs = [self._log(layout, columns, episode) for episode in layout.episodes]
                except UNREADABLE as error:
                    fault = f"dataset that can't be read ({fault_of(place / INFO, error)})"
                    logs = [RecordedLog(place.name, (), left_out={fault: 1})]
                yield from logs

    def _log(self, layout: Layout, columns: Columns, episode: Episode) -> RecordedLog:
        rows = self._moments(layout, columns, episode)
        used = {f"feature {name} that is not read": 1 for name in _unread(layout, columns)}
        counts = Counter(used)
        counts.update({f"role {role} without its column {name}": 1 for role, name in columns.absent.items()})
        counts["row that is no moment, or without a past and a future"] = episode.length - len(rows)
        cameras = self._cameras(layout)
        counts.update({f"camera {name} that is not named": 1 for name in layout.cameras if name not in cameras})
        for name, feature in cameras.items():
            if feature.calibration is None:
                counts[f"camera {name} without a calibration, taken for a level pinhole of 90 degrees"] += 1
        name = f"{layout.root.name}/{episode.index:06d}"
        files = (str(episode.data), *(str(clip.path) for key, clip in episode.clips.items() if key in cameras))
        there = tuple(path for path in files if Path(path).exists())
        frames = tuple((str(layout.root / INFO), episode.first + row) for row in rows)
        return RecordedLog(name, frames, layout.split(episode), {k: n for k, n in counts.items() if n}, there)

    def _moments(self, layout: Layout, columns: Columns, episode: Episode) -> list[int]:
        """Returns the rows that become scenes."""
        stride = max(1, round(self.every_s * layout.rate_hz))
        times = np.round(np.arange(episode.length) * (SECOND / layout.rate_hz)).astype(np.int64).tolist()
        is_past, is_next = "history" in columns.places, "plan" in columns.places
        return [
            row
            for row in range(0, episode.length, stride)
            if (is_past or has_history(0, times[row])) and (is_next or has_future(times[row], times[-1]))
        ]

    def _cameras(self, layout: Layout) -> dict[str, Feature]:
        if self.cameras is None:
            return layout.cameras
        wanted = {name if name in layout.cameras else f"{PREFIX}{name}" for name in self.cameras}
        return {name: feature for name, feature in layout.cameras.items() if name in wanted}

    def read_scene(self, frame: Frame) -> Scene:
        """See `RecordedDataset`."""
        layout = open_layout(str(Path(frame[0]).parents[1]))
        place = bisect.bisect_right([episode.first for episode in layout.episodes], frame[1]) - 1
        episode = layout.episodes[place]
        row = frame[1] - episode.first
        drive = _drive(
            layout.root, place, *(tuple(each.items()) for each in (self.columns, self.factors, self.offsets))
        )
        name = f"{layout.root.name}/{episode.index:06d}"
        history, future = _motion(drive, row, f"{name} at row {row}")
        images, faults = [], []
        for key, feature in self._cameras(layout).items():
            try:
                images.append(self._camera(layout, episode, row, key, feature))
            except (SceneError, OSError) as error:
                faults.append(f"{key}: {error}")
            except UNREADABLE as error:
                faults.append(f"{key}: {fault_of(layout.root / INFO, error)}")
        return Scene(
            id=f"lerobot-{name.replace('/', '-')}-{row}",
            kind="lerobot",
            cameras=tuple(images),
            history=history,
            future=future,
            command=command_of(future),
            provenance={
                "dataset": f"LeRobot {layout.root.name}",
                "log": name,
                "timestamp": str(round(row * SECOND / layout.rate_hz)),
                "licence": "the dataset's own",
                "task": "; ".join(episode.tasks),
                **dropped(None, faults),
            },
        )

    def _camera(self, layout: Layout, episode: Episode, row: int, key: str, feature: Feature) -> Camera:
        step = max(1, round(self.camera_step_s * layout.rate_hz))
        rows = [r for r in range(row - (self.camera_frames - 1) * step, row + 1, step) if r >= 0]
        if feature.dtype == "video":
            clip = episode.clips[key]
            first = round(clip.start_s * layout.rate_hz)
            frames = read_frames(clip.path, [first + r for r in rows], str(clip.path), layout.rate_hz)
        else:
            table = read_table(episode.data, (key, "frame_index"), filters=[("episode_index", "=", episode.index)])
            stored = table.sort_by("frame_index")[key].take(rows).to_pylist()
            frames = [_stored(layout.root, value) for value in stored]
        height, width = _size(feature)
        intrinsic, extrinsic, lens = _calibration(feature, width, height)
        times = (np.array(rows) - row) / layout.rate_hz
        for number, image in zip(rows, frames, strict=True):
            check_image(image, width, height, f"{episode.data}: {key} of row {number}")
        name = key.removeprefix(PREFIX)
        camera = Camera(name, tuple(frames), times, intrinsic, extrinsic, width, height, lens=lens)
        return checked(camera, f"{layout.root / INFO}: features.{key}.info.{CALIBRATION}")


def _unread(layout: Layout, columns: Columns) -> list[str]:
    own = {"timestamp", "frame_index", "episode_index", "index", "task_index", *columns.features, *layout.cameras}
    return sorted(layout.features.keys() - own)


@functools.lru_cache(maxsize=2)
def _drive(
    root: Path,
    place: int,
    columns: tuple[tuple[str, str | None], ...],
    factors: tuple[tuple[str, float], ...],
    offsets: tuple[tuple[str, float], ...],
) -> Drive:
    """Returns the motion of the episode at a place of the table; kept, since its rows are read in sequence."""
    layout = open_layout(str(root))
    found = find_columns(layout, dict(columns))
    return read_drive(layout, layout.episodes[place], found, dict(factors), dict(offsets))


def _motion(drive: Drive, row: int, source: str) -> tuple[Trajectory, Trajectory]:
    """Returns the history and the future of a row. Raises `SceneError` where the future is impossible."""
    now, frame = round(row * SECOND / drive.rate_hz), rigid(np.eye(3), np.zeros(3))
    if drive.track is not None:
        x, y, z, heading = drive.track.poses[row]
        frame = rigid(yaw_rotation(heading), np.array([x, y, z]))
    if "history" in drive.whole:
        history = Trajectory(drive.whole["history"][row])
    else:
        history = drive.history(row, frame)
    if "plan" in drive.whole:
        return history, Trajectory(drive.whole["plan"][row])
    if drive.controls is not None:
        return history, drive.rollout(row, float(history.states[-1, 3]))
    assert drive.track is not None
    return history, ego_future(drive.track, now, frame, source)


def _size(feature: Feature) -> tuple[int, int]:
    """Returns height and width; the channels come first or last, by name."""
    shape = feature.shape
    if feature.names[:1] in (("channel",), ("channels",)) or shape[0] == 3:
        return shape[1], shape[2]
    return shape[0], shape[1]


def _stored(root: Path, value: Mapping[str, Any]) -> bytes:
    """Returns an image of a row: its bytes, or those of the file that it names."""
    return value["bytes"] if value["bytes"] is not None else inside(root, value["path"]).read_bytes()


def _calibration(feature: Feature, width: int, height: int) -> tuple[FloatArray, FloatArray, Lens | None]:
    """Returns intrinsic, extrinsic and lens of a camera."""
    known = feature.calibration
    if known is None:
        focal = width / 2 / np.tan(VIEW_RAD / 2)
        assumed = [[focal, 0.0, width / 2], [0.0, focal, height / 2], [0.0, 0.0, 1.0]]
        return np.array(assumed), rigid(FORWARD, np.array(MOUNT)), None
    lens = known.get("lens")
    made = None if lens is None else lens_of(lens["model"], np.array(lens["coefficients"]))
    return np.array(known["intrinsic"], dtype=np.float64), np.array(known["extrinsic"], dtype=np.float64), made
