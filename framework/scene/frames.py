"""Angles, rigid transforms and projections between the ego, sensor and image frames."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
from array_api_compat import array_namespace

from framework.scene.types import Boxes, FloatArray


def wrap_angle(angle: Any) -> Any:
    """Wrap radians to (-pi, pi]; numpy or torch, any shape. Angles already inside come back bit for bit."""
    xp = array_namespace(angle)
    wrapped = math.pi - xp.remainder(math.pi - angle, xp.full_like(angle, 2 * math.pi))
    return xp.where((angle > -math.pi) & (angle <= math.pi), angle, wrapped)


def rigid(rotation: FloatArray, translation: FloatArray) -> FloatArray:
    """The `(4, 4)` transform that rotates by `rotation` `(3, 3)`, then moves by `translation` `(3,)`."""
    transform = np.eye(4)
    transform[:3, :3] = rotation
    transform[:3, 3] = translation
    return transform


def yaw_rotation(yaw: float) -> FloatArray:
    """Rotation `(3, 3)` by `yaw` about z."""
    cos, sin = math.cos(yaw), math.sin(yaw)
    return np.array([[cos, -sin, 0.0], [sin, cos, 0.0], [0.0, 0.0, 1.0]])


def quaternion_rotation(quaternion: FloatArray) -> FloatArray:
    """Rotations `(..., 3, 3)` of unit quaternions `(..., 4)` in the order w, x, y, z."""
    w, x, y, z = np.moveaxis(np.asarray(quaternion, dtype=np.float64), -1, 0)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return np.stack([np.stack(row, axis=-1) for row in rows], axis=-2)


def invert(transform: FloatArray) -> FloatArray:
    """Inverse of a rigid transform `(4, 4)`, by transposing its rotation."""
    rotation = transform[:3, :3].T
    return rigid(rotation, -rotation @ transform[:3, 3])


def is_rigid(transform: FloatArray, tolerance: float = 1e-3) -> bool:
    """Whether a `(4, 4)` matrix is a rotation (determinant +1) with a translation, to `tolerance`."""
    if not np.isfinite(transform).all():
        return False
    # By plain numbers: numpy's allclose and det take ten times as long.
    (*a, _), (*b, _), (*c, _), last = np.asarray(transform, dtype=np.float64).tolist()
    rows = ((a, a, 1), (b, b, 1), (c, c, 1), (a, b, 0), (a, c, 0), (b, c, 0))
    off = [u[0] * v[0] + u[1] * v[1] + u[2] * v[2] - product for u, v, product in rows]
    off += [*last[:3], last[3] - 1]
    determinant = (
        a[0] * (b[1] * c[2] - b[2] * c[1]) + a[1] * (b[2] * c[0] - b[0] * c[2]) + a[2] * (b[0] * c[1] - b[1] * c[0])
    )
    return bool(determinant > 0) and all(abs(value) <= tolerance for value in off)


def apply(transform: FloatArray, points: FloatArray) -> FloatArray:
    """Points `(..., 3)` moved by a rigid transform `(4, 4)`."""
    moved: FloatArray = points @ transform[:3, :3].T + transform[:3, 3]
    return moved


def yaw_of(rotation: FloatArray) -> float:
    """Heading about z of a rotation `(3, 3)`: where it sends the x axis."""
    return math.atan2(rotation[1, 0], rotation[0, 0])


def box_corners(values: FloatArray) -> FloatArray:
    """Corners `(n, 8, 3)` of boxes `(n, 7+)`: the bottom's four counter-clockwise from front left, then the top's."""
    signs = np.array([[1, 1], [-1, 1], [-1, -1], [1, -1]], dtype=np.float64) / 2
    signs = np.concatenate([np.c_[signs, np.full(4, -0.5)], np.c_[signs, np.full(4, 0.5)]])
    offsets = signs[None] * values[:, None, 3:6]
    cos, sin = np.cos(values[:, 6])[:, None], np.sin(values[:, 6])[:, None]
    rotated = [
        cos * offsets[..., 0] - sin * offsets[..., 1],
        sin * offsets[..., 0] + cos * offsets[..., 1],
        offsets[..., 2],
    ]
    corners: FloatArray = np.stack(rotated, axis=-1) + values[:, None, :3]
    return corners


def footprints(values: FloatArray) -> FloatArray:
    """Ground-plane corners `(n, 4, 2)` of boxes `(n, 7+)`, counter-clockwise from front left."""
    return box_corners(values)[:, :4, :2]


def points_in_box(points: FloatArray, box: FloatArray, margin: float = 0.0) -> Any:
    """Which of `points` `(n, 3+)` lie inside `box` `(7+,)`, grown by `margin` metres on every side; bool `(n,)`."""
    local = (points[:, :3] - box[:3]) @ yaw_rotation(float(box[6]))
    return (np.abs(local) <= box[3:6] / 2 + margin).all(axis=1)


def transform_boxes(boxes: Boxes, transform: FloatArray) -> Boxes:
    """Boxes seen from another upright frame: `transform` `(4, 4)` takes the old frame to the new.

    Velocities are turned, not moved: they are over ground in either frame.
    """
    values = np.array(boxes.values, dtype=np.float64)
    values[:, :3] = apply(transform, values[:, :3])
    values[:, 6] = wrap_angle(values[:, 6] + yaw_of(transform[:3, :3]))
    values[:, 7:9] = values[:, 7:9] @ transform[:2, :2].T
    return dataclasses.replace(boxes, values=values)


def project(points: FloatArray, intrinsic: FloatArray, extrinsic: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Pixels `(n, 2)` and depths `(n,)` of ego-frame points `(n, 3)`; pixels mean nothing where the depth is not
    positive."""
    camera = apply(invert(extrinsic), points)
    depth = camera[:, 2]
    safe = np.where(np.abs(depth) > 1e-9, depth, 1e-9)
    pixels = (camera @ intrinsic.T)[:, :2] / safe[:, None]
    return pixels, depth
