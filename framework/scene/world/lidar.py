"""LiDAR of the built-in world: rays against the ground and upright boxes, the nearest hit wins."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from framework.scene.frames import points_in_box, rigid
from framework.scene.types import Boxes, FloatArray, Lidar
from framework.scene.world.rig import LidarMount
from framework.scene.world.state import Snapshot

GROUND_INTENSITY, BOX_INTENSITY, CONE_INTENSITY = 0.2, 0.5, 0.9


def scan_lidar(snapshot: Snapshot, rng: np.random.Generator, mount: LidarMount) -> Lidar:
    """One sweep in the sensor's frame; rays that hit nothing within range return nothing."""
    rays = _rays(mount)
    origin = np.array(mount.position)
    distance, target = cast(origin, rays, snapshot.boxes.values)
    hit = distance <= mount.range_m
    reach = distance[hit] + rng.normal(0.0, mount.noise_m, int(hit.sum()))
    shiny = np.array([CONE_INTENSITY if label in ("traffic_cone", "barrier") else BOX_INTENSITY for label in snapshot.boxes.labels])
    intensity = np.where(target[hit] < 0, GROUND_INTENSITY, np.append(shiny, 0.0)[target[hit]])
    points = np.concatenate([rays[hit] * reach[:, None], intensity[:, None]], axis=1)
    return Lidar(points.astype(np.float32), rigid(np.eye(3), origin))


def _rays(mount: LidarMount) -> FloatArray:
    """Unit directions `(rings * azimuths, 3)`."""
    elevation = np.linspace(mount.lowest, mount.highest, mount.rings)[:, None]
    azimuth = np.linspace(-np.pi, np.pi, mount.azimuths, endpoint=False)[None, :]
    x, y = np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth)
    return np.stack(np.broadcast_arrays(x, y, np.sin(elevation)), axis=-1).reshape(-1, 3)


def cast(origin: FloatArray, rays: FloatArray, boxes: FloatArray) -> tuple[FloatArray, npt.NDArray[np.int64]]:
    """Distance (m) to what each ray `(r, 3)` from `origin` `(3,)` hits first, and what: a box's index, or -1 for the ground z = 0.

    `boxes` is `(n, 7+)`, all in one frame. Distances are infinite where nothing is hit. Boxes by slabs (Kay and Kajiya 1986).
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        ground = np.where(rays[:, 2] < 0, -origin[2] / rays[:, 2], np.inf)
        best, target = ground, np.full(len(rays), -1)
        cos, sin = np.cos(boxes[:, 6]), np.sin(boxes[:, 6])
        for index, box in enumerate(boxes):
            turn = np.array([[cos[index], sin[index], 0.0], [-sin[index], cos[index], 0.0], [0.0, 0.0, 1.0]])
            start, direction = turn @ (origin - box[:3]), rays @ turn.T
            first = (-box[3:6] / 2 - start) / direction
            last = (box[3:6] / 2 - start) / direction
            enter = np.minimum(first, last).max(axis=1)
            leave = np.maximum(first, last).min(axis=1)
            nearer = (enter <= leave) & (enter > 0) & (enter < best)
            best, target = np.where(nearer, enter, best), np.where(nearer, index, target)
    return best, target


def points_in_boxes(points: FloatArray, boxes: Boxes, margin: float = 0.1) -> npt.NDArray[np.int64]:
    """How many of `points` `(n, 3+)` lie in each box, grown by `margin` metres for the sensor's noise; `(boxes,)`, one frame for both."""
    return np.array([int(points_in_box(points, box, margin).sum()) for box in boxes.values], dtype=np.int64)
