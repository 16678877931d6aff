"""The sensors of a clip: f-theta cameras, the LiDAR and the radars, placed in the vehicle's frame.

The vehicle's frame is ours: the origin below the middle of the rear axle, x forward, y left, z up. A camera's forward
polynomial takes the angle to the optical axis to a radius in pixels; our lens has no constant part, which is zero in
the published calibration.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from framework.data.sources.physical_ai.files import AGAIN
from framework.data.sources.poses import unit_quaternions
from framework.scene.frames import quaternion_rotation, rigid
from framework.scene.lens import lens_of
from framework.scene.types import FloatArray, Lens, SceneError

DEGREE = 4
CONSTANT_PX = 0.1
"""Largest constant part (pixels) of a polynomial that is left out."""


def place_of(row: Mapping[str, Any], source: str) -> FloatArray:
    """Returns sensor to vehicle `(4, 4)` of a row of the extrinsics. Raises `SceneError` where it is no transform."""
    values = _numbers(row, ("qw", "qx", "qy", "qz", "x", "y", "z"), source)
    quaternion, sound = unit_quaternions(values[None, :4])
    if not sound[0]:
        raise SceneError(f"{source}: qx to qw: is no rotation; {AGAIN}")
    return rigid(quaternion_rotation(quaternion[0]), values[4:])


def lens_of_row(row: Mapping[str, Any], source: str) -> tuple[FloatArray, Lens, tuple[int, int]]:
    """Returns intrinsic `(3, 3)`, lens and size (width, height) of a row of the intrinsics. Raises `SceneError` where
    it is no f-theta camera.
    """
    polynomial = _numbers(row, [f"fw_poly_{power}" for power in range(DEGREE + 1)], source)
    cx, cy, width, height = _numbers(row, ("cx", "cy", "width", "height"), source).tolist()
    if abs(polynomial[0]) > CONSTANT_PX or polynomial[1] <= 0.0:
        raise SceneError(f"{source}: fw_poly_0, fw_poly_1: {polynomial[:2]} are of no f-theta lens; {AGAIN}")
    focal = polynomial[1]
    intrinsic = np.array([[focal, 0.0, cx], [0.0, focal, cy], [0.0, 0.0, 1.0]])
    return intrinsic, lens_of("f_theta", polynomial[1:] / focal), (round(width), round(height))


def _numbers(row: Mapping[str, Any], names: Sequence[str], source: str) -> FloatArray:
    for name in names:
        value = row.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not np.isfinite(value):
            raise SceneError(f"{source}: {name}: {value!r} is no number; {AGAIN}")
    return np.array([row[name] for name in names], dtype=np.float64)
