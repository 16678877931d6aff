"""Scenarios of the Argoverse 2 motion-forecasting dataset: the recording vehicle is the ego; there are no sensors.

Tracks are points with a heading: boxes get sizes typical of their class and stand on flat ground. The position of the
recording vehicle's own track is taken as its rear axle, as in the sensor dataset.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pyarrow import parquet

from framework.data.sources.annotate import annotated, dropped, unmapped
from framework.data.sources.argoverse import LICENCE, official_split
from framework.data.sources.argoverse_log import drivable_areas
from framework.data.sources.argoverse_survey import unread_map
from framework.data.sources.arrow import reads
from framework.data.sources.base import NO_PERCEPTION, UNREADABLE, Frame, RecordedLog, each_once, fault_of, files_below
from framework.data.sources.tracks import (
    SECOND,
    Body,
    Track,
    ego_future,
    ego_history,
    has_future,
    has_history,
    near_boxes,
    once_a_time,
    surroundings_of,
    track_number,
    without_leaps,
)
from framework.recipe.component import component
from framework.scene.frames import rigid, wrap_angle, yaw_of, yaw_rotation
from framework.scene.types import Boxes, FloatArray, Scene, SceneError

STEP = SECOND // 10
EDGE = 10
"""Steps left out at either end of a scenario, where smoothed positions contradict the velocities: in the recording that
the tests read, the ego's positions start at 3.4 m/s and its velocities at 5.9."""
STRIDE = 5
"""Steps between the current times of consecutive scenes."""
EGO = "AV"
COLUMNS = (
    "track_id",
    "timestep",
    "object_type",
    "position_x",
    "position_y",
    "heading",
    "velocity_x",
    "velocity_y",
    "start_timestamp",
)
"""What is read of a scenario's table."""
BODIES = {
    "vehicle": ("car", 4.6, 1.9, 1.6),
    "bus": ("bus", 12.0, 2.9, 3.2),
    "pedestrian": ("pedestrian", 0.7, 0.7, 1.75),
    "motorcyclist": ("motorcycle", 2.2, 0.8, 1.7),
    "cyclist": ("bicycle", 1.8, 0.7, 1.7),
    "riderless_bicycle": ("bicycle", 1.8, 0.6, 1.1),
}
"""Class, length, width and height (m) of a track's type."""


@dataclass(frozen=True, slots=True)
class LoggedScenario:
    """A scenario in memory; tracks by id."""

    tracks: dict[str, Track]
    """Poses in the city's frame."""
    types: dict[str, str]
    """The dataset's object type."""
    velocities: dict[str, FloatArray]
    """Logged velocities `(k, 2)` (m/s) in the city's axes."""
    start: int
    """Timestamp (ns) of step 0."""
    areas: tuple[FloatArray, ...]
    """Drivable polygons `(m, 3)` in the city's frame."""


@component
@dataclass(frozen=True)
class Forecasting:
    """Scenarios of Argoverse 2 motion forecasting, each a `scenario_*.parquet` in a folder with its map. The folders
    `train` and `val` are its splits.
    """

    lacks: ClassVar = {
        "cameras": "the dataset has no sensor data",
        "lidar": "the dataset has no sensor data",
        "radar": "the dataset has no sensor data",
        "perception": NO_PERCEPTION,
        "thought": "nobody wrote any",
    }

    def find_logs(self, folder: str) -> Iterator[RecordedLog]:
        """See `RecordedDataset`."""
        yield from each_once(self._logs(folder))

    def _logs(self, folder: str) -> Iterator[RecordedLog]:
        for path in files_below(folder, "scenario_*.parquet"):
            try:
                frames, left_out = _survey(path)
            except UNREADABLE as error:
                frames, left_out = (), {f"scenario that can't be read ({fault_of(path, error)})": 1}
            archive = _map_of(path)
            files = () if archive is None else (str(archive),)
            yield RecordedLog(path.stem.removeprefix("scenario_"), frames, official_split(path.parent), left_out, files)

    def read_scene(self, frame: Frame) -> Scene:
        """See `RecordedDataset`."""
        return read_scene(frame)


def _survey(path: Path) -> tuple[tuple[Frame, ...], dict[str, int]]:
    """Returns the frames of a scenario, and what no frame reads, by name."""
    table, left_out = _read(path)
    tracks, steps = table["track_id"].to_numpy(zero_copy_only=False), table["timestep"].to_numpy()
    own = sorted(steps[tracks == EGO].tolist())
    used = _used(own)
    counts = {
        "step between two frames, or without a past and a future": len(own) - len(used),
        f"scenario without {EGO}": int(not own),
        "track that is at no frame": len(set(tracks) - set(tracks[np.isin(steps, used)])) if used else 0,
        **left_out,
        **unread_map(_map_of(path)),
    }
    return tuple((str(path), step) for step in used), {name: count for name, count in counts.items() if count}


def _map_of(path: Path) -> Path | None:
    return next(iter(sorted(path.parent.glob("log_map_archive_*.json"))), None)


def _read(path: Path) -> tuple[pa.Table, dict[str, int]]:
    """Returns a scenario's table in the order of time, without rows that are nowhere or whose track is elsewhere at the
    same time, and the numbers of these by name. Raises `SceneError` where it is damaged or lacks a column.
    """
    with reads(path, "restore it from the dataset"):
        table = parquet.read_table(path)
    if missing := sorted(set(COLUMNS) - set(table.schema.names)):
        raise SceneError(f"{path}: column {', '.join(missing)}: is missing; fetch the file of the published dataset")
    table = table.sort_by("timestep")
    numbers = [table[name].to_numpy().astype(np.float64) for name in ("position_x", "position_y", "heading")]
    placed = np.isfinite(np.stack(numbers, axis=1)).all(axis=1)
    table, nowhere = table.filter(pa.array(placed)), int((~placed).sum())
    tracks = np.unique(table["track_id"].to_numpy(zero_copy_only=False).astype(str), return_inverse=True)[1]
    places = np.stack([table[name].to_numpy() for name in ("position_x", "position_y")], axis=1).astype(np.float64)
    once = once_a_time(table["timestep"].to_numpy().astype(np.int64), tracks.astype(np.int64), places)
    return table.filter(pa.array(once)), {
        f"row whose position or heading is none ({path})": nowhere,
        f"row whose track_id names another row of its timestep ({path})": int((~once).sum()),
    }


def _used(steps: list[int]) -> list[int]:
    """Returns the steps that become scenes."""
    kept = steps[EDGE:-EDGE]
    return [
        step
        for step in kept[::STRIDE]
        if has_history(kept[0] * STEP, step * STEP) and has_future(step * STEP, kept[-1] * STEP)
    ]


def read_scene(frame: Frame) -> Scene:
    """Returns the scene of a scenario's step: the ego's motion, all others as boxes, their futures and the map."""
    path, step = Path(frame[0]), frame[1]
    scenario, now = _open(frame[0]), step * STEP
    name = path.stem.removeprefix("scenario_")
    x, y, z, heading = scenario.tracks[EGO].at(np.array([now]))[0]
    pose = rigid(yaw_rotation(heading), np.array([x, y, z]))
    present = [track for track in scenario.tracks if track != EGO and now in scenario.tracks[track].times]
    known = [track for track in present if scenario.types[track] in BODIES]
    others: dict[str, int] = {}
    boxes = _boxes(scenario, known, now, pose, others)
    near = near_boxes(boxes, others)
    boxes, known = boxes.take(near), [track for track, is_near in zip(known, near, strict=True) if is_near]
    future = ego_future(scenario.tracks[EGO], now, pose, f"{name} at step {step}")
    return Scene(
        id=f"forecasting-{name}-{step}",
        kind="forecasting",
        boxes=boxes,
        history=ego_history(scenario.tracks[EGO], now, pose),
        future=future,
        surroundings=surroundings_of(
            [scenario.tracks[track] for track in known],
            scenario.areas,
            scenario.tracks[EGO],
            now,
            pose,
            (
                Body(BODIES[kind][0], BODIES[kind][1:], scenario.tracks[track])
                for track, kind in scenario.types.items()
                if track != EGO and track not in present and kind in BODIES
            ),
        ),
        **annotated(boxes, future),
        provenance={
            "dataset": "Argoverse 2 motion forecasting",
            "log": name,
            "timestamp": str(scenario.start + now),
            "licence": LICENCE,
            **unmapped([scenario.types[track] for track in present if scenario.types[track] not in BODIES]),
            **dropped(boxes, (), others),
        },
    )


def _boxes(scenario: LoggedScenario, known: list[str], now: int, pose: FloatArray, others: dict[str, int]) -> Boxes:
    """Returns the boxes of the tracks `known` at `now` in the ego frame `pose`; velocities that are none are counted in
    `others`.
    """
    values = np.zeros((len(known), 9))
    for row, track in zip(values, known, strict=True):
        logged = scenario.tracks[track]
        place = int(np.searchsorted(logged.times, now))
        x, y, z, heading = logged.poses[place]
        _, *size = BODIES[scenario.types[track]]
        ground = (np.array([x, y, z]) - pose[:3, 3]) @ pose[:3, :3]
        row[:3] = ground + np.array([0.0, 0.0, size[2] / 2])
        row[3:6] = size
        row[6] = wrap_angle(np.array(heading - yaw_of(pose[:3, :3])))
        row[7:9] = without_leaps(scenario.velocities[track][place][None], others)[0] @ pose[:2, :2]
    track_ids: npt.NDArray[np.int64] = np.array([track_number(track) for track in known], dtype=np.int64)
    return Boxes(values, tuple(BODIES[scenario.types[track]][0] for track in known), track_ids=track_ids)


@functools.lru_cache(maxsize=1)
def _open(path: str) -> LoggedScenario:
    """Returns the scenario of a table; cached, since its steps are read in sequence."""
    table, _ = _read(Path(path))
    ids = table["track_id"].to_numpy(zero_copy_only=False)
    if EGO not in ids:
        raise SceneError(f"{path}: track_id: no track {EGO!r}; remove the scenario")
    position = [table[name].to_numpy() for name in ("position_x", "position_y")]
    poses = np.stack([*position, np.zeros(len(ids)), table["heading"].to_numpy()], axis=1)
    velocity = np.stack([table[name].to_numpy() for name in ("velocity_x", "velocity_y")], axis=1)
    times = table["timestep"].to_numpy().astype(np.int64) * STEP
    members = {str(track): np.flatnonzero(ids == track) for track in sorted(set(ids))}
    return LoggedScenario(
        tracks={track: Track(times[rows], poses[rows]) for track, rows in members.items()},
        types={track: str(table["object_type"][int(rows[0])]) for track, rows in members.items()},
        velocities={track: velocity[rows] for track, rows in members.items()},
        start=int(table["start_timestamp"][0].as_py()),
        areas=drivable_areas(_map_of(Path(path))),
    )
