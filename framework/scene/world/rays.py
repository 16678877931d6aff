"""Rays against the built-in world's solids: what cameras, LiDAR and radar see of upright boxes and the ground."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from framework.scene.frames import apply, invert, rigid, yaw_rotation
from framework.scene.types import FloatArray

GROUND = -1
"""What `cast` names the ground z = 0, where a box would be its index."""
REAR, FRONT, RIGHT, LEFT, BOTTOM, TOP = range(6)
"""Faces of a box, as `enter_box` numbers them."""


def enter_box(origin: FloatArray, rays: FloatArray, box: FloatArray) -> tuple[FloatArray, npt.NDArray[np.int64]]:
    """Where rays `(r, 3)` from `origin` `(3,)` enter one box `(7+,)`, by slabs (Kay and Kajiya 1986).

    The first result is the multiple of each ray at which it enters (infinite if it never does, or starts inside or
    beyond), which is the distance (m) for rays of unit length; the second the face it enters by, both `(r,)`.
    """
    box_from_world = invert(rigid(yaw_rotation(float(box[6])), box[:3]))
    start, direction = apply(box_from_world, origin), rays @ box_from_world[:3, :3].T
    direction = np.where(np.abs(direction) < 1e-12, 1e-12, direction)
    half = box[3:6] / 2.0
    bounds = (-np.sign(direction) * half - start) / direction
    axis = bounds.argmax(axis=1)
    enter = bounds[np.arange(len(rays)), axis]
    leave = ((np.sign(direction) * half - start) / direction).min(axis=1)
    face = 2 * axis + (direction[np.arange(len(rays)), axis] < 0)
    return np.where((enter <= leave) & (enter > 0), enter, np.inf), face


def cast(origin: FloatArray, rays: FloatArray, boxes: FloatArray) -> tuple[FloatArray, npt.NDArray[np.int64]]:
    """Multiple of each ray `(r, 3)` from `origin` `(3,)` at which it first hits something, and what, both `(r,)`.

    `boxes` is `(n, 7+)`, in the rays' frame; what is hit is a box's index or `GROUND`. Infinite where nothing is.
    """
    down = np.minimum(rays[:, 2], -1e-12)
    nearest = np.where(rays[:, 2] < 0, -origin[2] / down, np.inf)
    target = np.full(len(rays), GROUND)
    for index, box in enumerate(boxes):
        enter, _ = enter_box(origin, rays, box)
        nearer = enter < nearest
        nearest, target = np.where(nearer, enter, nearest), np.where(nearer, index, target)
    return nearest, target
