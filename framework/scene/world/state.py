"""What the world looks like at the current time, before any sensor has seen it: the hand-over from scenarios to
sensors.
"""

from __future__ import annotations

from dataclasses import dataclass

from framework.scene.types import Boxes, FloatArray


@dataclass(frozen=True, slots=True)
class Road:
    """The road around the ego, in the ego frame at the current time.

    `drivable` are closed polygons `(k, 2)` (m) whose union is the drivable surface; `markings` are painted polylines
    `(k, 2)` (m); `route` is the centreline `(k, 2)` that the navigator wants followed, `speed_limit` in m/s.
    """

    drivable: tuple[FloatArray, ...]
    markings: tuple[FloatArray, ...]
    route: FloatArray
    speed_limit: float


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The current moment of a scenario, exact, in the ego frame: what sensors are simulated from.

    `boxes` carry true velocities over ground and track ids; `ego_speed` in m/s along x, `ego_yaw_rate` in rad/s.
    """

    kind: str
    seed: int
    road: Road
    boxes: Boxes
    ego_speed: float
    ego_yaw_rate: float
