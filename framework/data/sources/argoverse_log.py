"""The files of an Argoverse 2 sensor log, read with every fault named: poses, annotations, map and sweeps.

A log's `egovehicle` frame differs from ours in height alone: its origin is the rear axle itself. Annotations and sweeps
lie in it, poses and the map in the city's.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pyarrow import feather

from framework.data.sources.areas import sound_areas
from framework.data.sources.arrow import reads
from framework.data.sources.base import SweepRule, walk
from framework.data.sources.poses import Poses, newest, ordered_poses, unit_quaternions, yaws
from framework.data.sources.tracks import SECOND, Nanoseconds, Track, once_a_time, track_number
from framework.scene.check import are_extents
from framework.scene.frames import quaternion_rotation, rigid
from framework.scene.types import FloatArray, SceneError

ANNOTATIONS, POSES = "annotations.feather", "city_SE3_egovehicle.feather"
LIDAR, CAMERAS = "sensors/lidar", "sensors/cameras"
CALIBRATION = "calibration"
INTRINSICS, EXTRINSICS = f"{CALIBRATION}/intrinsics.feather", f"{CALIBRATION}/egovehicle_SE3_sensor.feather"
MAP = "map/log_map_archive_*.json"
TEXTS = ("sensor_name", "track_uuid", "category")
"""Columns that hold texts."""
TIME = "timestamp_ns"
"""The column of times, whose integers floats would round."""
DRIVABLE = "drivable_areas"
LAYERS = (DRIVABLE, "lane_segments", "pedestrian_crossings")
QUATERNION, TRANSLATION, SIZE = ("qw", "qx", "qy", "qz"), ("tx_m", "ty_m", "tz_m"), ("length_m", "width_m", "height_m")
PINHOLE, DISTORTION = ("fx_px", "fy_px", "cx_px", "cy_px", "width_px", "height_px"), ("k1", "k2", "k3")
SWEEP = ("x", "y", "z", "intensity", "laser_number", "offset_ns")
COLUMNS = {
    ANNOTATIONS: (TIME, "track_uuid", "category", "num_interior_pts", *QUATERNION, *TRANSLATION, *SIZE),
    POSES: (TIME, *QUATERNION, *TRANSLATION),
    INTRINSICS: ("sensor_name", *PINHOLE),
    EXTRINSICS: ("sensor_name", *QUATERNION, *TRANSLATION),
}
"""What is read of each table."""

AXLE_HEIGHT_M = 0.33
"""Height of the rear axle above the ground, measured in the sweeps."""
GROUND = rigid(np.eye(3), np.array([0.0, 0.0, -AXLE_HEIGHT_M]))
"""From our ego frame to the log's `egovehicle` frame."""
SWEEP_NS = SECOND * 3 // 20
"""How much earlier than a moment (ns) a past sweep may start."""
UP_LASERS = 32
"""Lasers below this number are those of `up_lidar`, the others those of `down_lidar`, which is mounted upside down."""


@dataclass(frozen=True, slots=True)
class Annotations:
    """The annotated boxes of a log, in the order of time."""

    times: Nanoseconds
    """`(n,)`, ascending."""
    labels: npt.NDArray[np.object_]
    """The dataset's category of each, `(n,)`."""
    values: FloatArray
    """Centre, size and yaw of each box, `(n, 7)` in the `egovehicle` frame."""
    points: npt.NDArray[np.int64]
    """LiDAR points in each box, `(n,)`."""
    track: npt.NDArray[np.int64]
    """Index in `tracks` of each, `(n,)`."""
    numbers: npt.NDArray[np.int64]
    """The track id of each of `tracks`, see `track_number`."""
    tracks: tuple[Track, ...]
    """Tracks over ground, in the city's frame."""
    faulty: Nanoseconds
    """Times of the rows that are left out: their quaternion is no rotation, or they lack a centre, a size, a number of
    points or a track."""
    repeated: Nanoseconds
    """Times of the rows that are left out because their track has another box at the same time."""


@dataclass(frozen=True, slots=True)
class Files:
    """The files of a log, by their names alone."""

    sweeps: Nanoseconds
    """Times of the sweeps, ascending."""
    images: Mapping[str, Nanoseconds]
    """Times of each camera's images, ascending."""
    map: Path | None
    """The vector map; None where there is none."""
    unread: Mapping[str, int]
    """Numbers of the files that nothing is read from, by their names, in which `*` stands for what differs."""


@dataclass(frozen=True, slots=True)
class Sweep:
    """The points of both LiDARs."""

    points: FloatArray
    """`(n, 4)`: x, y, z (m) in the `egovehicle` frame at the sweep's time, and intensity (0 to 1)."""
    after: Nanoseconds
    """How much later than the sweep's time each returned, `(n,)` (ns)."""
    lasers: npt.NDArray[np.int64]
    """The number of each one's laser, `(n,)`."""
    left_out: Mapping[str, int]
    """What of the file is not read, by name."""


@dataclass(frozen=True, slots=True)
class VectorMap:
    """The vector map of a log."""

    areas: tuple[FloatArray, ...]
    """The polygons of the drivable area, each `(k, 3)` (m) in the city's frame."""
    entries: Mapping[str, int]
    """Numbers of the entries of each layer that is there, those that are none of `LAYERS` included."""
    faults: Mapping[str, int]
    """Layers and polygons that are not read as they are, by what is wrong with them."""


def find_folders(root: str) -> Iterator[Path]:
    """Yields the folders of logs below `root`, in the order of their paths."""
    for folder, names, files in walk(root):
        if {ANNOTATIONS, POSES} & set(files) or _holds_part(folder, names):
            names.clear()
            yield folder


def _holds_part(folder: Path, names: list[str]) -> bool:
    """Returns whether a folder with folders of those `names` has sensors or a calibration as a log has them. One that
    has no table is a log, too, that can't be read.
    """
    parts = [part for part in (LIDAR, CAMERAS, INTRINSICS, EXTRINSICS) if part.partition("/")[0] in names]
    return any((folder / part).exists() for part in parts)


def list_files(log: Path) -> Files:
    """Returns the files of a log; opens none."""
    sweeps: list[int] = []
    images: dict[str, list[int]] = {}
    unread: Counter[str] = Counter()
    archives = sorted(log.glob(MAP))
    read = {ANNOTATIONS, POSES, INTRINSICS, EXTRINSICS, *(path.relative_to(log).as_posix() for path in archives[:1])}
    for folder, _, files in walk(log):
        place = folder.relative_to(log).as_posix()
        camera = folder.name if Path(place).parent.as_posix() == CAMERAS else None
        suffix, found = (".jpg", images.setdefault(camera, [])) if camera else (".feather", sweeps)
        for name in files:
            file = Path(place) / name
            if (camera or place == LIDAR) and file.suffix == suffix and _is_time(file.stem):
                found.append(int(file.stem))
            elif file.as_posix() not in read:
                unread[re.sub(r"\d+", "*", file.as_posix().replace(log.name, "*"))] += 1
    times = {camera: np.array(sorted(stamps), dtype=np.int64) for camera, stamps in sorted(images.items())}
    return Files(np.array(sorted(sweeps), dtype=np.int64), times, archives[0] if archives else None, dict(unread))


def _is_time(stem: str) -> bool:
    """Returns whether a sweep or an image has a time (ns) as its name."""
    return stem.isascii() and stem.isdecimal() and str(int(stem)) == stem and int(stem) <= np.iinfo(np.int64).max


def read_columns(path: Path, *names: str) -> list[npt.NDArray[Any]]:
    """Returns columns of a Feather file. Raises `SceneError` where it is missing, damaged, or lacks one, where one that
    is none of `TEXTS` holds no numbers, and where times are no integers.
    """
    return columns_of(_read_table(path), path, *names)


def unread_columns(path: Path, *names: str) -> list[str]:
    """Returns the columns of a Feather file but for `names`. Raises `SceneError` where it is missing or damaged."""
    return sorted(set(_read_table(path).schema.names) - set(names))


def _read_table(path: Path) -> pa.Table:
    with reads(path, "restore it from the dataset"):
        return feather.read_table(path)


def columns_of(table: pa.Table, path: Path, *names: str) -> list[npt.NDArray[Any]]:
    """Returns columns of the table of `path`; see `read_columns`."""
    if missing := sorted(set(names) - set(table.schema.names)):
        raise SceneError(f"{path}: column {', '.join(missing)}: is missing; fetch the file of the published dataset")
    for name in names:
        if name not in TEXTS and not (pa.types.is_integer(kind := table[name].type) or pa.types.is_floating(kind)):
            raise SceneError(f"{path}: column {name}: holds {kind}, not numbers; fetch it again")
        if name == TIME and not pa.types.is_integer(table[name].type):
            raise SceneError(f"{path}: column {name}: holds {table[name].type}, which rounds times; fetch it again")
        if name == TIME and table[name].null_count:
            raise SceneError(f"{path}: column {name}: {table[name].null_count} rows have no time; fetch it again")
    try:
        return [table[name].to_numpy() for name in names]
    except pa.ArrowException as error:
        raise SceneError(f"{path}: {error}: is damaged; fetch it again") from error


def read_poses(log: Path) -> Poses:
    """Returns a log's poses. Raises `SceneError` as `read_columns` does, and where no row is a pose."""
    times, *columns = read_columns(log / POSES, *COLUMNS[POSES])
    values = np.stack(columns, axis=1).astype(np.float64)
    return ordered_poses(times, values[:, :4], values[:, 4:], f"{log / POSES}: qw to tz_m", "fetch it again")


def annotated_times(log: Path) -> tuple[Nanoseconds | None, str | None]:
    """Returns the time of each of a log's annotations, and what is wrong with their file. None where it has none, or
    none that can be read: a table without a row tells no empty road.
    """
    columns, fault = _annotations(log)
    return None if columns is None else columns[0].astype(np.int64), fault


def _annotations(log: Path) -> tuple[list[npt.NDArray[Any]] | None, str | None]:
    """Returns the columns of a log's annotations; else see `annotated_times`."""
    if not (log / ANNOTATIONS).is_file():
        return None, None
    try:
        columns = read_columns(log / ANNOTATIONS, *COLUMNS[ANNOTATIONS])
    except SceneError as error:
        return None, f"annotations that can't be read ({error})"
    if not len(columns[0]):
        return None, f"table of annotations without a row ({log / ANNOTATIONS}); fetch it again"
    return columns, None


def read_annotations(log: Path, poses: Poses) -> Annotations | None:
    """Returns a log's annotations; None where `annotated_times` has none."""
    found, _ = _annotations(log)
    if found is None:
        return None
    times, uuids, labels, points, *columns = found
    values = np.stack(columns, axis=1).astype(np.float64)
    quaternions, sound = unit_quaternions(values[:, :4])
    sound &= np.isfinite(values).all(axis=1) & are_extents(values[:, 4:7], values[:, 7:])
    sound &= np.isfinite(points) & np.array([uuid is not None for uuid in uuids], dtype=bool)
    covered = np.flatnonzero(sound & poses.cover(times))
    chosen = covered[np.argsort(times[covered], kind="stable")]
    rotations, centres = quaternion_rotation(quaternions[chosen]), values[chosen, 4:7]
    names_of, track = np.unique(uuids[chosen].astype(str), return_inverse=True)
    at = times[chosen].astype(np.int64)
    frames = poses.at(at) if len(at) else np.zeros((0, 4, 4))
    moved = np.einsum("nij,nj->ni", frames[:, :3, :3], centres) + frames[:, :3, 3]
    over_ground = np.c_[moved, yaws(frames[:, :3, :3] @ rotations)]
    boxes = np.c_[centres, values[chosen, 7:], yaws(rotations)]
    once = once_a_time(at, track.astype(np.int64), moved)
    repeated, at, over_ground, boxes, track = at[~once], at[once], over_ground[once], boxes[once], track[once]
    return Annotations(
        times=at,
        labels=labels[chosen][once],
        values=boxes,
        points=points[chosen][once].astype(np.int64),
        track=track.astype(np.int64),
        numbers=np.array([track_number(name) for name in names_of.tolist()], dtype=np.int64),
        tracks=tuple(Track(at[track == one], over_ground[track == one]) for one in range(len(names_of))),
        faulty=times[~sound].astype(np.int64),
        repeated=repeated,
    )


def read_map(archive: Path) -> VectorMap:
    """Returns what can be read of a vector map. Raises `SceneError` for a file that is damaged."""
    try:
        archived = json.loads(archive.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise SceneError(f"{archive}: {error!r}: is no vector map; fetch it again") from error
    if not isinstance(archived, dict):
        raise SceneError(f"{archive}: is a {type(archived).__name__}, not layers by name; fetch it again")
    layers = {name: archived[name] for name in LAYERS if isinstance(archived.get(name), dict)}
    others = {name: layer for name, layer in archived.items() if name not in LAYERS}
    entries = {
        name: len(layer) if isinstance(layer, dict | list) else 1 for name, layer in {**layers, **others}.items()
    }
    faults = {f"layer {name} of the map is missing or no table ({archive})": 1 for name in LAYERS if name not in layers}
    counts: Counter[str] = Counter()
    outlines = map(_boundary, layers.get(DRIVABLE, {}).values())
    areas = [part for ring in outlines for part in sound_areas(ring, "drivable area of the map", str(archive), counts)]
    return VectorMap(tuple(areas), entries, {**faults, **counts})


def _boundary(area: Any) -> FloatArray:
    """Returns the boundary `(k, 3)` of an entry of the drivable areas; without a point where it has none."""
    try:
        return np.array([[p["x"], p["y"], p["z"]] for p in area["area_boundary"]], dtype=np.float64)
    except (KeyError, TypeError, ValueError, OverflowError):
        return np.zeros((0, 3))


def drivable_areas(archive: Path | None) -> tuple[FloatArray, ...]:
    """Returns the drivable polygons `(k, 3)` of a vector map, in the city's frame; none without a map, or of a damaged
    one, which `unread_map` names.
    """
    try:
        return () if archive is None else read_map(archive).areas
    except SceneError:
        return ()


def read_sweep(path: Path) -> Sweep:
    """Returns a sweep. Raises `SceneError` as `read_columns` does, for a sweep without a point, and for intensities of
    another scale.
    """
    table = _read_table(path)
    columns = columns_of(table, path, *SWEEP)
    values = np.stack([column.astype(np.float32) for column in columns[:4]], axis=1)  # from float16 and uint8
    values[:, 3] = _from_0_to_1(columns[3], path)
    finite = np.isfinite(values).all(axis=1) & np.isfinite(columns[4]) & np.isfinite(columns[5])
    if not finite.any():
        raise SceneError(f"{path}: x, y, z: no point is finite; fetch it again")
    lasers, after = (column[finite].astype(np.int64) for column in columns[4:])
    left_out = {f"column of a sweep that is not read: {name}": 1 for name in sorted({*table.schema.names} - {*SWEEP})}
    if broken := int((~finite).sum()):
        left_out["LiDAR point that is not finite"] = broken
    return Sweep(values[finite], after, lasers, left_out)


def _from_0_to_1(intensity: npt.NDArray[Any], path: Path) -> FloatArray:
    """Returns intensities `(n,)` that were published as 0 to 255; numbers with a point may be 0 to 1 already."""
    values = intensity.astype(np.float64)
    largest = np.max(np.abs(values), initial=0.0, where=np.isfinite(values))
    if largest > 255.0:
        raise SceneError(
            f"{path}: column intensity: holds {largest:g}, not 0 to 255; fetch the published file, or scale it"
        )
    return values if intensity.dtype.kind == "f" and largest <= 1.0 else values / 255.0


def count_lidars(lasers: npt.NDArray[np.int64]) -> dict[str, int]:
    """Returns how many points of laser numbers `(n,)` each LiDAR has."""
    up = int((lasers < UP_LASERS).sum())
    return {"up_lidar": up, "down_lidar": len(lasers) - up}


def sweep_at(sweeps: Nanoseconds, moments: Nanoseconds, rule: SweepRule) -> npt.NDArray[np.int64]:
    """Returns the index in `sweeps` of each moment's sweep `(n,)`, see `Argoverse.sweep`; -1 where there is none."""
    return newest(sweeps, moments, 0) if rule == "annotated" else newest(sweeps, moments - 1, SWEEP_NS)
