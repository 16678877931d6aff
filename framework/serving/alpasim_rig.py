"""The cameras that AlpaSim declares, as ours: a pinhole with or without distortion, a fisheye or f-theta lens.

Both rigs have x forward, y left, z up and their origin on the ground below the rear axle, both cameras x right, y down,
z forward (NVlabs/alpasim, `sensorsim.proto`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from carla_driver_interface.geometry import Pose
from carla_driver_interface.protocol import AvailableCamera

from framework.scene.image import read_image
from framework.scene.lens import lens_of
from framework.scene.types import Camera, FloatArray, Lens, SceneError

RADIAL, TANGENTIAL, PRISM = 6, 2, 4
"""OpenCV's coefficients of each kind: k1 to k6, p1 and p2, s1 to s4."""


@dataclass(frozen=True)
class DeclaredCamera:
    """A camera's calibration, before its first image."""

    name: str
    """What the model calls it."""
    intrinsic: FloatArray
    """`(3, 3)`, in pixels of `width` x `height`."""
    extrinsic: FloatArray
    """`(4, 4)`, sensor to rig."""
    lens: Lens | None
    """None for a pinhole."""
    width: int
    """Pixels per row."""
    height: int
    """Rows of pixels."""

    def camera(self, frames: list[tuple[float, bytes]]) -> Camera:
        """The camera with `frames`, each its time (s, from now) and its encoded image, oldest first.

        Raises `SceneError` for an image of another size than was declared, or which is none.
        """
        image = read_image(frames[-1][1])
        if image.size != (self.width, self.height):
            size = f"{image.width} x {image.height}"
            raise SceneError(f"camera {self.name}: image of {size}, not of the declared {self.width} x {self.height}")
        times = np.array([time for time, _ in frames])
        return Camera(
            self.name, tuple(encoded for _, encoded in frames), times, self.intrinsic, self.extrinsic, self.width,
            self.height, lens=self.lens,
        )  # fmt: skip


def declared(name: str, camera: AvailableCamera) -> DeclaredCamera:
    """The camera that the model calls `name`. Raises `SceneError` for a camera that cannot be ours."""
    spec = camera.intrinsics
    kind = spec.WhichOneof("camera_param")
    field = f"camera {camera.logical_id}"
    if not spec.resolution_w or not spec.resolution_h:
        raise SceneError(f"{field}: resolution {spec.resolution_w} x {spec.resolution_h}; declare its size")
    if kind not in LENSES:
        raise SceneError(f"{field}: intrinsics: {kind or 'none'}; declare one of {', '.join(LENSES)}")
    try:
        linear, lens = LENSES[kind](getattr(spec, kind))
    except SceneError as error:
        raise SceneError(f"{field}: {error}") from error
    parameters = getattr(spec, kind)
    intrinsic = np.eye(3)
    intrinsic[:2, :2] = linear
    intrinsic[:2, 2] = parameters.principal_point_x, parameters.principal_point_y
    if not np.isfinite(intrinsic).all() or np.linalg.det(intrinsic) <= 0.0:
        raise SceneError(f"{field}: intrinsics: focal lengths must be positive numbers")
    extrinsic = Pose.from_proto(camera.rig_to_camera).as_matrix()
    return DeclaredCamera(name, intrinsic, extrinsic, lens, spec.resolution_w, spec.resolution_h)


def _pinhole(spec: Any) -> tuple[FloatArray, Lens | None]:
    radial, tangential = _filled(spec.radial_coeffs, RADIAL), _filled(spec.tangential_coeffs, TANGENTIAL)
    coefficients = np.concatenate([radial[:2], tangential, radial[2:], _filled(spec.thin_prism_coeffs, PRISM)])
    return _focal(spec), lens_of("brown_conrady", coefficients) if coefficients.any() else None


def _fisheye(spec: Any) -> tuple[FloatArray, Lens | None]:
    return _focal(spec), lens_of("fisheye", _filled(spec.radial_coeffs, 4))


def _f_theta(spec: Any) -> tuple[FloatArray, Lens | None]:
    polynomial = np.array(spec.angle_to_pixeldist_poly, dtype=np.float64)
    if len(polynomial) < 2 or polynomial[1] <= 0.0:
        raise SceneError("angle_to_pixeldist_poly: is missing or falls; give the polynomial from angles to pixels")
    shear = spec.linear_cde
    mixed = [[shear.linear_c, shear.linear_d], [shear.linear_e, 1.0]] if spec.HasField("linear_cde") else np.eye(2)
    return polynomial[1] * np.array(mixed), lens_of("f_theta", polynomial[1:] / polynomial[1])


LENSES = {"opencv_pinhole_param": _pinhole, "opencv_fisheye_param": _fisheye, "ftheta_param": _f_theta}
"""How the parameters of each kind of camera are read."""


def _focal(spec: Any) -> FloatArray:
    return np.diag([spec.focal_length_x, spec.focal_length_y])


def _filled(values: Any, count: int) -> FloatArray:
    given = np.array(values, dtype=np.float64)
    if len(given) > count:
        raise SceneError(f"{len(given)} coefficients of distortion; there are {count} at most")
    return np.concatenate([given, np.zeros(count - len(given))])
