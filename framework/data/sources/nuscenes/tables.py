"""The tables of nuScenes: lists of rows in `v1.0-*/*.json`, joined by token.

Schema: https://github.com/nutonomy/nuscenes-devkit/blob/master/docs/schema_nuscenes.md. A *scene* of nuScenes is 20 s
of a drive with a *sample* (a key frame, all of whose sensors and objects are annotated) every half second. Times are
integer microseconds, quaternions w, x, y, z, boxes and poses in the map's frame, sizes width, length, height.
"""

from __future__ import annotations

import functools
import json
import operator
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from framework.scene.frames import quaternion_rotation, rigid
from framework.scene.types import FloatArray, SceneError

LIDAR = "LIDAR_TOP"
MICROSECOND = 1000
"""In ns."""
TABLES = (
    "scene", "log", "sample", "sample_data", "ego_pose", "calibrated_sensor", "sensor", "sample_annotation", "instance",
    "category",
)  # fmt: skip
"""The tables that are read. `attribute`, `visibility` and `map` tell nothing that a scene has."""
SENSOR = ("token", "channel", "modality")
AGAIN = "unpack the metadata archive again"


class Placement(NamedTuple):
    """A row of `ego_pose` or `calibrated_sensor`: where something is in another frame."""

    table: str
    """The table's name, for messages."""
    token: str
    """The row's token."""
    translation: tuple[float, ...]
    """x, y, z (m)."""
    rotation: tuple[float, ...]
    """w, x, y, z."""

    def transform(self) -> FloatArray:
        """Returns it as `(4, 4)`. Raises `SceneError` for a rotation that is none."""
        if (reason := wrong_placement(self.translation, self.rotation)) is not None:
            raise SceneError(f"{self.table}.json: {self.token}: {reason}; {AGAIN}, or remove its frames")
        return rigid(quaternion_rotation(np.array(self.rotation)), np.array(self.translation))


class Calibration(NamedTuple):
    """A sensor as it was mounted for a drive."""

    channel: str
    """Its name, such as `CAM_FRONT`."""
    modality: str
    """`camera`, `lidar` or `radar`."""
    placement: Placement
    """The sensor in the ego frame."""
    intrinsic: tuple[tuple[float, ...], ...]
    """The rows of a camera's matrix; empty for other sensors."""


class Reading(NamedTuple):
    """A row of `sample_data`: what one sensor measured at one time."""

    time: int
    """In microseconds."""
    file: str
    """Relative to the folder of the version's folder."""
    pose: str
    """Token of the ego's pose."""
    calibration: str
    """Token of the sensor's calibration."""
    is_key: bool
    """Whether it is of a sample's own time."""
    sample: str
    """Token of that sample, or of the next one."""
    width: int
    """Pixels per row; 0 for no camera."""
    height: int
    """Rows of pixels."""


class Annotation(NamedTuple):
    """A row of `sample_annotation`: an object at the time of a sample."""

    token: str
    """The row's token."""
    time: int
    """The sample's, in microseconds."""
    instance: str
    """Token of the object, the same over time."""
    category: str
    """The dataset's class, such as `vehicle.car`."""
    placement: Placement
    """The centre, in the map's frame."""
    size: tuple[float, ...]
    """Width, length, height (m)."""
    num_lidar_pts: int
    """LiDAR points in the box."""
    num_radar_pts: int
    """Radar returns in the box."""


class Sample(NamedTuple):
    """A key frame."""

    token: str
    """The row's token."""
    time: int
    """In microseconds."""


@dataclass
class Drive:
    """A scene of nuScenes."""

    name: str
    """Such as `scene-0061`."""
    location: str
    """The map that it lies on, such as `singapore-onenorth`."""
    samples: dict[int, Sample] = field(default_factory=dict)
    """Its key frames by their row in `sample.json`."""
    readings: dict[str, list[Reading]] = field(default_factory=lambda: defaultdict(list))
    """By channel, in the order of time: of the LiDAR all, of other sensors those of key frames and the one before."""
    between: Counter[str] = field(default_factory=Counter)
    """Number of readings between key frames by channel."""
    fault: str | None = None
    """What makes the whole drive unusable."""


@dataclass
class Tables:
    """The tables of one version, joined."""

    folder: Path
    """The version's folder, such as `v1.0-mini`."""
    drives: dict[str, Drive]
    """By name."""
    drive_of: list[str]
    """The name of the drive of each row of `sample.json`."""
    poses: dict[str, Placement]
    """Of the ego in the map's frame, by token."""
    calibrations: dict[str, Calibration]
    """By token."""
    annotations: dict[str, list[Annotation]]
    """By the token of their sample; empty for the test set, which has none."""

    @property
    def root(self) -> Path:
        """The folder of `samples/`, `sweeps/` and `maps/`."""
        return self.folder.parent

    def pose(self, reading: Reading) -> FloatArray:
        """Returns ego to map `(4, 4)` at a reading. Raises `SceneError` where there is none."""
        if reading.pose not in self.poses:
            raise SceneError(
                f"{self.folder}: sample_data.ego_pose_token: {reading.pose} is no row of ego_pose; {AGAIN}"
            )
        return self.located(self.poses[reading.pose])

    def calibration(self, reading: Reading) -> Calibration:
        """Returns the calibration of a reading's sensor."""
        return self.calibrations[reading.calibration]

    def mount(self, reading: Reading) -> FloatArray:
        """Returns sensor to ego `(4, 4)`. Raises `SceneError` for a rotation that is none."""
        return self.located(self.calibration(reading).placement)

    def located(self, placement: Placement) -> FloatArray:
        """Returns a placement as `(4, 4)`. Raises `SceneError` with the file for a rotation that is none."""
        try:
            return placement.transform()
        except SceneError as error:
            raise SceneError(f"{self.folder}/{error}") from None


def wrong_placement(translation: tuple[float, ...], rotation: tuple[float, ...]) -> str | None:
    """Returns what is wrong with a translation and a quaternion; None where nothing is."""
    if len(translation) != 3 or not np.isfinite(translation).all():
        return f"translation: {list(translation)} are no three numbers"
    if len(rotation) != 4 or not abs(float(np.linalg.norm(rotation)) - 1.0) < 1e-3:
        return f"rotation: {list(rotation)} is no unit quaternion"
    return None


@functools.lru_cache(maxsize=2)
def read_tables(folder: str) -> Tables:
    """Returns the tables in the folder of a version; cached, since they are large and every frame needs them. Processes
    that are forked afterwards share them. Raises `SceneError` with file and field for what is missing or damaged.
    """
    path = Path(folder)
    logs = dict(_rows(path, "log", "token", "location"))
    scenes = {
        token: Drive(name, _joined(logs, log, path, "scene.log_token"))
        for token, name, log in _rows(path, "scene", "token", "name", "log_token")
    }
    samples, drive_of = _read_samples(path, scenes)
    calibrations = _read_calibrations(path)
    drives = {drive.name: drive for drive in scenes.values()}
    used = _read_readings(path, samples, calibrations, {token: drives[name] for token, name in drive_of.items()})
    poses = {
        token: Placement("ego_pose", token, tuple(translation), tuple(rotation))
        for token, translation, rotation in _rows(path, "ego_pose", "token", "translation", "rotation")
        if token in used
    }
    annotations = _read_annotations(path, samples)
    return Tables(path, drives, list(drive_of.values()), poses, calibrations, annotations)


def _rows(folder: Path, table: str, *fields: str) -> Iterator[Any]:
    """Yields the `fields` of every row of a table. Raises `SceneError` for a table or a field that is missing."""
    path = folder / f"{table}.json"
    try:
        rows = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise SceneError(f"{path}: the table is missing; {AGAIN}") from None
    except ValueError as error:
        raise SceneError(f"{path}: is not JSON ({error}); {AGAIN}") from error
    if not isinstance(rows, list):
        raise SceneError(f"{path}: holds a {type(rows).__name__}, not a list of rows; {AGAIN}")
    get = operator.itemgetter(*fields)
    for place, row in enumerate(rows):
        try:
            yield get(row)
        except (KeyError, TypeError) as error:
            raise SceneError(f"{path} at {place}: field {error} is missing; {AGAIN}") from error


def _joined(rows: dict[str, Any], token: str, folder: Path, where: str) -> Any:
    if token not in rows:
        raise SceneError(f"{folder}/{where.partition('.')[0]}.json: {where}: {token} is no row; {AGAIN}")
    return rows[token]


def _read_samples(folder: Path, scenes: dict[str, Drive]) -> tuple[dict[str, Sample], dict[str, str]]:
    """Returns the samples and the names of their drives, both by token and in the table's order; adds each to its
    drive.
    """
    samples, drives = {}, {}
    following: list[tuple[str, str]] = []
    fields = ("token", "timestamp", "scene_token", "next")
    for row, (token, time, scene, successor) in enumerate(_rows(folder, "sample", *fields)):
        drive = _joined(scenes, scene, folder, "sample.scene_token")
        samples[token] = drive.samples[row] = Sample(token, time)
        drives[token] = drive.name
        following.append((token, successor))
    named = {drive.name: drive for drive in scenes.values()}
    for token, successor in following:
        if successor and not (successor in samples and samples[successor].time > samples[token].time):
            named[drives[token]].fault = f"sample.json: timestamp: not ascending after {token}; {AGAIN}"
    return samples, drives


def _read_calibrations(folder: Path) -> dict[str, Calibration]:
    sensors = {token: (channel, modality) for token, channel, modality in _rows(folder, "sensor", *SENSOR)}
    fields = ("token", "sensor_token", "translation", "rotation", "camera_intrinsic")
    return {
        token: Calibration(
            channel=_joined(sensors, sensor, folder, "calibrated_sensor.sensor_token")[0],
            modality=sensors[sensor][1],
            placement=Placement("calibrated_sensor", token, tuple(translation), tuple(rotation)),
            intrinsic=tuple(tuple(row) for row in intrinsic),
        )
        for token, sensor, translation, rotation, intrinsic in _rows(folder, "calibrated_sensor", *fields)
    }


def _read_readings(
    folder: Path, samples: dict[str, Sample], calibrations: dict[str, Calibration], drives: dict[str, Drive]
) -> set[str]:
    """Adds the readings that scenes are made of to their drives, each of which is given by its samples' tokens. Returns
    the tokens of their poses.
    """
    fields = ("token", "prev", "sample_token", "timestamp", "filename", "ego_pose_token", "calibrated_sensor_token",
              "is_key_frame", "width", "height")  # fmt: skip
    kept: list[tuple[Drive, str, str, Reading]] = []
    before_key: set[str] = set()
    sweeps: dict[str, int] = {}
    chain: list[tuple[Drive, str, str]] = []
    for token, prev, sample, time, file, pose, calibration, is_key, width, height in _rows(
        folder, "sample_data", *fields
    ):
        drive = _joined(drives, sample, folder, "sample_data.sample_token")
        channel = _joined(calibrations, calibration, folder, "sample_data.calibrated_sensor_token").channel
        reading = Reading(time, file, pose, calibration, is_key, sample, width or 0, height or 0)
        kept.append((drive, channel, token, reading))
        if is_key:
            before_key.add(prev)
        else:
            drive.between[channel] += 1
        if channel == LIDAR:
            sweeps[token] = time
            chain.append((drive, token, prev))
    for drive, token, prev in chain:
        if prev and not (prev in sweeps and sweeps[prev] < sweeps[token]):
            drive.fault = f"sample_data.json: timestamp: {LIDAR} not ascending at {token}; {AGAIN}"
    used = set()
    for drive, channel, token, reading in kept:
        if channel == LIDAR or reading.is_key or token in before_key:
            drive.readings[channel].append(reading)
            used.add(reading.pose)
    for drive in drives.values():
        for readings in drive.readings.values():
            readings.sort(key=lambda reading: reading.time)
    return used


def _read_annotations(folder: Path, samples: dict[str, Sample]) -> dict[str, list[Annotation]]:
    categories = dict(_rows(folder, "category", "token", "name"))
    instances = {
        token: _joined(categories, category, folder, "instance.category_token")
        for token, category in _rows(folder, "instance", "token", "category_token")
    }
    fields = ("token", "sample_token", "instance_token", "translation", "rotation", "size", "num_lidar_pts",
              "num_radar_pts")  # fmt: skip
    annotations: dict[str, list[Annotation]] = defaultdict(list)
    for token, sample, instance, translation, rotation, size, lidar, radar in _rows(
        folder, "sample_annotation", *fields
    ):
        time = _joined(samples, sample, folder, "sample_annotation.sample_token").time
        category = _joined(instances, instance, folder, "sample_annotation.instance_token")
        placement = Placement("sample_annotation", token, tuple(translation), tuple(rotation))
        annotations[sample].append(Annotation(token, time, instance, category, placement, tuple(size), lidar, radar))
    return annotations
