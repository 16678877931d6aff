"""Where the built-in world's sensors sit on the car, and what they look like from inside."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
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

    `field_of_view` is horizontal (rad), `yaw` its direction (rad, left positive), `position` x, y, z (m) in the ego
    frame. Pixel coordinates have (0, 0) at the *corner* of the first pixel, whose centre is (0.5, 0.5); the principal
    point is the image's middle, and pixels are square.
    """

    name: str
    width: Pixels
    height: Pixels
    field_of_view: Annotated[float, Interval(gt=0, le=3)]
    yaw: Annotated[float, Interval(ge=-6.3, le=6.3)]
    position: tuple[Coordinate, Coordinate, Coordinate] = (1.5, 0.0, 1.6)

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
    """A spinning LiDAR: `rings` elevations from `lowest` to `highest` (rad) by `azimuths` columns.

    It reaches `range_m`; `noise_m` and `intensity_noise` are standard deviations.
    """

    rings: Width = 16
    azimuths: Width = 180
    lowest: Annotated[float, Interval(ge=-1.5, le=1.5)] = -0.35
    highest: Annotated[float, Interval(ge=-1.5, le=1.5)] = 0.05
    range_m: Metres = 60.0
    position: tuple[Coordinate, Coordinate, Coordinate] = (1.0, 0.0, 1.9)
    noise_m: Deviation = 0.02
    intensity_noise: Deviation = 0.03


@component
@dataclass(frozen=True, slots=True)
class RadarMount:
    """A forward radar with a horizontal `field_of_view` (rad, both sides together).

    The noises are standard deviations in m, rad, m/s and dB; `clutter` is the mean count of returns from nothing.
    """

    field_of_view: Annotated[float, Interval(gt=0, le=6.3)] = 2.1
    range_m: Metres = 80.0
    position: tuple[Coordinate, Coordinate, Coordinate] = (3.4, 0.0, 0.6)
    range_noise: Deviation = 0.15
    azimuth_noise: Deviation = 0.008
    velocity_noise: Deviation = 0.1
    section_noise: Deviation = 2.0
    clutter: Deviation = 2.0


@component
@dataclass(frozen=True, slots=True)
class Rig:
    """All sensors of a car."""

    cameras: tuple[CameraMount, ...]
    lidar: LidarMount = LidarMount()
    radar: RadarMount = RadarMount()


def _ring(width: int, height: int, yaws: Mapping[str, float]) -> tuple[CameraMount, ...]:
    return tuple(CameraMount(name, width, height, math.radians(70), math.radians(yaw)) for name, yaw in yaws.items())


TINY_RIG = Rig(_ring(96, 64, {"front": 0, "left": 60, "right": -60}))
"""Three small cameras: enough for tests and for training on a CPU."""
_ALL_AROUND = {"front": 0, "front_left": 55, "front_right": -55, "back": 180, "back_left": 112, "back_right": -112}
FULL_RIG = Rig(_ring(448, 256, _ALL_AROUND), LidarMount(rings=32, azimuths=720))
"""Six cameras all around and a denser LiDAR."""
