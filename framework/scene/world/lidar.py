"""LiDAR of the built-in world: rays against the ground and upright boxes, the nearest hit wins."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

from framework.scene.frames import points_in_box, rigid
from framework.scene.types import Boxes, FloatArray, Lidar
from framework.scene.world.rays import GROUND, cast
from framework.scene.world.rig import LidarMount
from framework.scene.world.state import Snapshot

GROUND_INTENSITY, PAINTED_METAL = 0.2, 0.5
INTENSITY = {"traffic_cone": 0.9, "barrier": 0.8, "pedestrian": 0.35, "animal": 0.3, "debris": 0.1, "hose": 0.6}
"""Reflectance (0 to 1) by class; vehicles are painted metal."""


def scan_lidar(snapshot: Snapshot, rng: np.random.Generator, mount: LidarMount) -> Lidar:
    """One sweep in the sensor's frame; rays that hit nothing within range return nothing."""
    rays, origin = _rays(mount), np.array(mount.position)
    distance, target = cast(origin, rays, snapshot.boxes.values)
    hit = distance <= mount.range_m
    reach = distance[hit] + rng.normal(0.0, mount.noise_m, int(hit.sum()))
    materials = np.array([*(INTENSITY.get(label, PAINTED_METAL) for label in snapshot.boxes.labels), GROUND_INTENSITY])
    assert GROUND == -1  # the ground's material comes last
    intensity = np.clip(materials[target[hit]] + rng.normal(0.0, mount.intensity_noise, len(reach)), 0.0, 1.0)
    points = np.concatenate([rays[hit] * reach[:, None], intensity[:, None]], axis=1)
    return Lidar(points.astype(np.float32), rigid(np.eye(3), origin))


@lru_cache(maxsize=8)
def _rays(mount: LidarMount) -> FloatArray:
    """Unit directions `(rings * azimuths, 3)`."""
    elevation = np.linspace(mount.lowest, mount.highest, mount.rings)[:, None]
    azimuth = np.linspace(-np.pi, np.pi, mount.azimuths, endpoint=False)[None, :]
    x, y = np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth)
    return np.stack(np.broadcast_arrays(x, y, np.sin(elevation)), axis=-1).reshape(-1, 3)


def points_in_boxes(points: FloatArray, boxes: Boxes, margin: float = 0.1) -> npt.NDArray[np.int64]:
    """How many of `points` `(n, 3+)` lie in each box, `(boxes,)`, both in one frame.

    Boxes are grown by `margin` metres on every side for the sensor's noise.
    """
    return np.array([int(points_in_box(points, box, margin).sum()) for box in boxes.values], dtype=np.int64)
