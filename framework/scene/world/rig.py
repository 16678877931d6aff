"""Where the built-in world's sensors sit on the car, and what they look like from inside."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated

import numpy as np
from annotated_types import Interval

from framework.recipe.component import component
from framework.recipe.ranges import Coordinate, Deviation, Metres, Pixels, Width
from framework.scene.frames import rigid, yaw_rotation
from framework.scene.types import FloatArray

CAMERA_AXES = np.array([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])
"""A forward-looking camera's axes (right, down, forward) as columns in the ego frame."""


@component
@dataclass(frozen=True, slots=True)
class CameraMount:
    """A pinhole camera without distortion.

    Pixel coordinates have (0, 0) at the *corner* of the first pixel, whose centre is (0.5, 0.5); the principal point is
    the image's middle, and pixels are square.
    """

    name: str
    """The name by which the data knows the camera."""
    width: Pixels
    """The image's width in pixels."""
    height: Pixels
    """The image's height in pixels."""
    field_of_view: Annotated[float, Interval(ge=1e-3, le=3)]
    """The horizontal field of view (rad)."""
    yaw: Annotated[float, Interval(ge=-6.3, le=6.3)]
    """The direction of view (rad), left positive."""
    position: tuple[Coordinate, Coordinate, Coordinate] = (1.5, 0.0, 1.6)
    """x, y, z (m) in the ego frame."""

    @property
    def intrinsic(self) -> FloatArray:
        """Camera matrix `(3, 3)` in pixels."""
        focal = self.width / 2 / math.tan(self.field_of_view / 2)
        return np.array([[focal, 0.0, self.width / 2], [0.0, focal, self.height / 2], [0.0, 0.0, 1.0]])

    @property
    def extrinsic(self) -> FloatArray:
        """Sensor to ego, `(4, 4)`."""
        return rigid(yaw_rotation(self.yaw) @ CAMERA_AXES, np.array(self.position))


@component
@dataclass(frozen=True, slots=True)
class LidarMount:
    """A spinning LiDAR: `rings` elevations from `lowest` to `highest` by `azimuths` columns."""

    rings: Width = 16
    """Number of elevations."""
    azimuths: Width = 180
    """Columns of a turn."""
    lowest: Annotated[float, Interval(ge=-1.5, le=1.5)] = -0.35
    """The lowest elevation (rad)."""
    highest: Annotated[float, Interval(ge=-1.5, le=1.5)] = 0.05
    """The highest elevation (rad)."""
    range_m: Metres = 60.0
    """Reach (m)."""
    position: tuple[Coordinate, Coordinate, Coordinate] = (1.0, 0.0, 1.9)
    """x, y, z (m) in the ego frame."""
    noise_m: Deviation = 0.02
    """Standard deviation of a distance (m)."""
    intensity_noise: Deviation = 0.03
    """Standard deviation of an intensity."""


@component
@dataclass(frozen=True, slots=True)
class RadarMount:
    """A forward radar."""

    field_of_view: Annotated[float, Interval(ge=1e-3, le=6.3)] = 2.1
    """The horizontal field of view (rad), both sides together."""
    range_m: Metres = 80.0
    """Reach (m)."""
    position: tuple[Coordinate, Coordinate, Coordinate] = (3.4, 0.0, 0.6)
    """x, y, z (m) in the ego frame."""
    range_noise: Deviation = 0.15
    """Standard deviation of a distance (m)."""
    azimuth_noise: Deviation = 0.008
    """Standard deviation of a direction (rad)."""
    velocity_noise: Deviation = 0.1
    """Standard deviation of a speed (m/s)."""
    section_noise: Deviation = 2.0
    """Standard deviation of a cross-section (dB)."""
    clutter: Deviation = 2.0
    """Mean count of returns from nothing."""


@component
@dataclass(frozen=True, slots=True)
class Rig:
    """All sensors of a car."""

    cameras: tuple[CameraMount, ...]
    """The cameras, in the order of the data."""
    lidar: LidarMount = LidarMount()
    """The LiDAR."""
    radar: RadarMount = RadarMount()
    """The radar."""

    def shown(self, cameras: Sequence[str] | None) -> Rig:
        """The rig with the cameras of these names alone: what nobody looks at needs no drawing. None names all. A rig
        without any of them stays as it is, and is refused by who looks for them.
        """
        if cameras is None:
            return self
        named = tuple(mount for mount in self.cameras if mount.name in cameras)
        return self if cameras and not named else replace(self, cameras=named)


def _ring(width: int, height: int, yaws: Mapping[str, float]) -> tuple[CameraMount, ...]:
    return tuple(CameraMount(name, width, height, math.radians(70), math.radians(yaw)) for name, yaw in yaws.items())


TINY_RIG = Rig(_ring(96, 64, {"front": 0, "left": 60, "right": -60}))
"""Three small cameras: enough for tests and for training on a CPU."""
_ALL_AROUND = {"front": 0, "front_left": 55, "front_right": -55, "back": 180, "back_left": 112, "back_right": -112}
FULL_RIG = Rig(_ring(448, 256, _ALL_AROUND), LidarMount(rings=32, azimuths=720))
"""Six cameras all around and a denser LiDAR."""
