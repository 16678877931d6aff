"""The cameras of a 123D log: pinholes, f-theta cameras and fisheye cameras with a mirror's model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from framework.data.sources.poses import unit_quaternions
from framework.data.sources.py123d.tables import AGAIN
from framework.scene.frames import quaternion_rotation, rigid
from framework.scene.lens import lens_of
from framework.scene.types import FloatArray, Lens, SceneError


@dataclass(frozen=True, slots=True)
class Mount:
    """A camera's calibration."""

    intrinsic: FloatArray
    """`(3, 3)`, in pixels."""
    lens: Lens | None
    """The distortion; None for a pinhole."""
    to_imu: FloatArray
    """`(4, 4)`, sensor to the IMU."""
    width: int
    """Pixels per row."""
    height: int
    """Rows of pixels."""


def transform(values: Any, source: str) -> FloatArray:
    """Returns the transform `(4, 4)` of x, y, z, qw, qx, qy, qz. Raises `SceneError` where it is none."""
    numbers = np.asarray(values, dtype=np.float64)
    quaternion, sound = unit_quaternions(numbers[None, 3:])
    if numbers.shape != (7,) or not np.isfinite(numbers).all() or not sound[0]:
        raise SceneError(f"{source}: {values} is no pose; {AGAIN}")
    return rigid(quaternion_rotation(quaternion[0]), numbers[:3])


def mount_of(about: Mapping[str, Any], source: str) -> Mount:
    """Returns a camera's calibration from its description. Raises `SceneError` where it is incomplete, and for an
    unknown model.
    """
    try:
        model = str(about.get("camera_model", "pinhole")).lower()
        if model == "pinhole":
            intrinsic, lens = _pinhole(about)
        elif model == "ftheta":
            intrinsic, lens = _f_theta(about["intrinsics"])
        elif model == "fisheye_mei":
            intrinsic, lens = _mirror(about)
        else:
            raise SceneError(f"{source}: camera_model: {model} is unknown; use pinhole, ftheta or fisheye_mei")
        place = transform(about["camera_to_imu_se3"], f"{source}: camera_to_imu_se3")
        return Mount(intrinsic, lens, place, int(about["width"]), int(about["height"]))
    except (KeyError, TypeError, ValueError, IndexError) as error:
        if isinstance(error, SceneError):
            raise
        raise SceneError(f"{source}: {error!r}: the calibration is incomplete; {AGAIN}") from error


def _pinhole(about: Mapping[str, Any]) -> tuple[FloatArray, Lens | None]:
    fx, fy, cx, cy, skew = about["intrinsics"]
    intrinsic = np.array([[fx, skew, cx], [0.0, fy, cy], [0.0, 0.0, 1.0]])
    distortion = about.get("distortion")
    if about.get("is_undistorted") or distortion is None or not any(distortion):
        return intrinsic, None
    return intrinsic, lens_of("brown_conrady", np.array(distortion))


def _f_theta(values: Any) -> tuple[FloatArray, Lens]:
    """The values are cx, cy, and the factors of theta^0 to theta^5 in pixels; the backward polynomial follows."""
    cx, cy, constant, focal, *higher = values[:8]
    if abs(constant) > 0.1 or focal <= 0.0:
        raise SceneError(f"intrinsics: {values[:4]} are of no f-theta lens; {AGAIN}")
    intrinsic = np.array([[focal, 0.0, cx], [0.0, focal, cy], [0.0, 0.0, 1.0]])
    return intrinsic, lens_of("f_theta", np.array([focal, *higher]) / focal)


def _mirror(about: Mapping[str, Any]) -> tuple[FloatArray, Lens]:
    """The tangential part of the distortion is left out, as by py123d."""
    fx, fy, cx, cy = about["projection"]
    k1, k2, *_ = about.get("distortion") or (0.0, 0.0)
    intrinsic = np.array([[fx, 0.0, cx], [0.0, fy, cy], [0.0, 0.0, 1.0]])
    return intrinsic, lens_of("mei", np.array([about["mirror_parameter"], k1, k2]))
