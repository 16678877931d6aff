"""Radar of the built-in world: a few returns per visible box, with radial velocity over ground."""

from __future__ import annotations

import numpy as np

from framework.scene.frames import rigid
from framework.scene.types import FloatArray, Radar
from framework.scene.world.lidar import cast
from framework.scene.world.rig import RadarMount
from framework.scene.world.state import Snapshot

CROSS_SECTION = {"car": 10.0, "truck": 20.0, "bus": 20.0, "trailer": 18.0, "construction_vehicle": 18.0, "motorcycle": 3.0}
"""Mean radar cross-section (dB m^2); people, cones and the like return `SMALL`."""
SMALL = -5.0


def scan_radar(snapshot: Snapshot, rng: np.random.Generator, mount: RadarMount) -> Radar:
    """Returns in the sensor's frame: x, y, z, radial velocity (positive when receding), cross-section; then some clutter."""
    origin = np.array(mount.position)
    returns = [
        _reflect(box, label, origin, rng, mount)
        for index, (box, label) in enumerate(zip(snapshot.boxes.values, snapshot.boxes.labels, strict=True))
        if _visible(index, snapshot.boxes.values, origin, mount)
    ]
    clutter = _clutter(rng, mount)
    return Radar(np.concatenate([*returns, clutter]).astype(np.float32), rigid(np.eye(3), origin))


def _visible(index: int, boxes: FloatArray, origin: FloatArray, mount: RadarMount) -> bool:
    """Whether the straight line to the box's centre meets this box first, within range and field of view."""
    to_box = boxes[index, :3] - origin
    distance = float(np.linalg.norm(to_box))
    if distance > mount.range_m or abs(np.arctan2(to_box[1], to_box[0])) > mount.field_of_view / 2:
        return False
    _, target = cast(origin, to_box[None] / distance, boxes)
    return bool(target[0] == index)


def _reflect(box: FloatArray, label: str, origin: FloatArray, rng: np.random.Generator, mount: RadarMount) -> FloatArray:
    count = 1 + int(rng.poisson(min(box[3], 6.0) / 2))
    cos, sin = np.cos(box[6]), np.sin(box[6])
    spread = rng.uniform(-0.4, 0.4, (count, 3)) * box[3:6]
    points = box[:3] + np.stack([cos * spread[:, 0] - sin * spread[:, 1], sin * spread[:, 0] + cos * spread[:, 1], spread[:, 2]], 1)
    ray = points - origin
    distance = np.linalg.norm(ray, axis=1)
    radial = (ray[:, :2] @ np.nan_to_num(box[7:9])) / distance + rng.normal(0, mount.velocity_noise, count)
    azimuth = np.arctan2(ray[:, 1], ray[:, 0]) + rng.normal(0, mount.azimuth_noise, count)
    flat = np.hypot(ray[:, 0], ray[:, 1]) + rng.normal(0, mount.range_noise, count)
    section = rng.normal(CROSS_SECTION.get(label, SMALL), 2.0, count)
    return np.stack([flat * np.cos(azimuth), flat * np.sin(azimuth), ray[:, 2], radial, section], axis=1)


def _clutter(rng: np.random.Generator, mount: RadarMount) -> FloatArray:
    count = int(rng.poisson(mount.clutter))
    azimuth = rng.uniform(-mount.field_of_view / 2, mount.field_of_view / 2, count)
    distance = rng.uniform(3.0, mount.range_m, count)
    still = rng.normal(0, mount.velocity_noise, count)
    return np.stack(
        [distance * np.cos(azimuth), distance * np.sin(azimuth), rng.normal(0, 0.3, count), still, rng.normal(SMALL, 3.0, count)], 1
    )
