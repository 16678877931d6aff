"""The tables of nuScenes: lists of rows in `v1.0-*/*.json`, joined by token.

Schema: https://github.com/nutonomy/nuscenes-devkit/blob/master/docs/schema_nuscenes.md. A *scene* of nuScenes is 20 s
of a drive with a *sample* (a key frame, all of whose sensors and objects are annotated) every half second. Times are
integer microseconds, quaternions w, x, y, z, boxes and poses in the map's frame, sizes width, length, height.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

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
    """The rows of a camera's matrix; empty for other sensors, and where the table has none."""


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
    """The map that it lies on, such as `singapore-onenorth`; empty where no log tells it."""
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
    drive_of: dict[int, str]
    """The names of the drives of the samples, by their row in `sample.json`."""
    poses: dict[str, Placement]
    """Of the ego in the map's frame, by token."""
    calibrations: dict[str, Calibration]
    """By token."""
    annotations: dict[str, list[Annotation]]
    """By the token of their sample; empty for the test set, which has none."""
    left_out: Counter[str] = field(default_factory=Counter)
    """Rows that can't be used, by file, field and reason."""

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
