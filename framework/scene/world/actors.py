"""The other road users of the built-in world: each moves along a path of its own, by car-following or as its script
says."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from framework.scene.intelligent_driver import IntelligentDriver
from framework.scene.types import FloatArray
from framework.scene.world.road import Path

SIZES = {
    "car": (4.5, 1.9, 1.6),
    "truck": (8.0, 2.5, 3.2),
    "bus": (11.0, 2.6, 3.3),
    "construction_vehicle": (6.0, 2.5, 2.8),
    "pedestrian": (0.6, 0.6, 1.75),
    "motorcycle": (2.1, 0.8, 1.5),
    "bicycle": (1.8, 0.6, 1.6),
    "traffic_cone": (0.4, 0.4, 0.8),
    "barrier": (0.5, 2.0, 1.0),
    "animal": (1.3, 0.5, 1.0),
    "debris": (0.9, 0.8, 0.4),
    "hose": (6.0, 0.25, 0.15),
}
"""Typical length, width, height (m) by class."""
VEHICLES = ("car", "truck", "bus", "motorcycle", "construction_vehicle")

DRIVER = IntelligentDriver()
"""The same for everyone, so that nothing hidden decides a future."""
MAX_BRAKING = 6.0
"""The hardest braking (m/s^2) of anybody."""
MIN_GAP = 0.1
"""Gaps to a lead (m) are taken to be no shorter."""


def follow(speed: float, desired: float, gap: float = np.inf, lead_speed: float = 0.0) -> float:
    """The acceleration (m/s^2) of `DRIVER` behind a lead `gap` metres ahead, no less than -`MAX_BRAKING`.

    Above the desired speed the free term brakes gently instead of with the fourth power.
    """
    free = DRIVER.free_term(speed, desired) if speed <= desired else max(-1.5, 1.5 * (desired / speed - 1.0) * 3.0)
    interaction = DRIVER.interaction_term(speed, max(gap, MIN_GAP), speed - lead_speed)
    return float(max(DRIVER.acceleration * (free - interaction), -MAX_BRAKING))


@dataclass
class Actor:
    """Somebody or something on the road or next to it."""

    label: str
    """Its class, of `CLASSES`."""
    path: Path
    """The path that it moves along."""
    station: float
    """Its centre's distance along the path (m)."""
    offset: float = 0.0
    """Its centre's distance to the left of the path (m)."""
    speed: float = 0.0
    """Its speed along the path (m/s)."""
    desired: float = 0.0
    """The speed that it wants (m/s); 0 for what never moves."""
    size: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Length, width, height (m); zeros stand for its class's."""
    yaw: float = 0.0
    """The body's angle to its path (rad)."""
    brakes: tuple[float, float] | None = None
    """(time, deceleration): from that time on it brakes to a stop."""
    shifts: tuple[float, float, float] | None = None
    """(start, duration, metres to the left) of a lane change."""
    follows: bool = False
    """Whether it keeps its distance to whoever is ahead on the same path."""
    watched: bool = True
    """Whether others react to it: it is on the road or may enter it. The rest is roadside scenery."""

    def __post_init__(self) -> None:
        if not self.size[0]:
            self.size = SIZES[self.label]

    def sideways(self, time: FloatArray | float) -> FloatArray:
        """Offset (m) at `time`: a half cosine between the lanes of a change."""
        if self.shifts is None:
            return np.zeros_like(time) + self.offset
        return self.offset + self.shifts[2] * (1.0 - np.cos(np.pi * self._phase(time))) / 2.0

    def drift(self, time: FloatArray | float) -> FloatArray:
        """Speed to the left of the path (m/s) at `time`: the derivative of `sideways`."""
        if self.shifts is None:
            return np.zeros_like(time)
        _, duration, distance = self.shifts
        return np.asarray(distance * np.pi / (2.0 * duration) * np.sin(np.pi * self._phase(time)))

    def _phase(self, time: FloatArray | float) -> FloatArray:
        """How much of the lane change is done at `time`, 0 to 1."""
        assert self.shifts is not None
        begin, duration, _ = self.shifts
        phase: FloatArray = np.minimum(np.maximum((np.asarray(time) - begin) / duration, 0.0), 1.0)
        return phase

    def velocity(self, time: float) -> FloatArray:
        """Velocity `(2,)` (m/s) where it is at `time`, whatever it does next."""
        if self.desired <= 0.0:
            return np.zeros(2)
        side, reach = float(self.sideways(time)), 0.01
        behind, here, ahead = (self.path.at(self.station + step, side) for step in (-reach, 0.0, reach))
        left = np.array([-np.sin(here[2]), np.cos(here[2])])
        velocity: FloatArray = self.speed * (ahead - behind)[:2] / (2 * reach) + float(self.drift(time)) * left
        return velocity

    def poses(self, time: float, after: FloatArray) -> FloatArray:
        """Poses `(k, 3)` x, y, heading `after` `(k,)` seconds from `time`, going on at the present speed."""
        return self.trace(self.station + self.speed * after, time + after)

    def trace(self, stations: FloatArray, times: FloatArray) -> FloatArray:
        """Poses `(k, 3)` x, y, heading when it is at `stations` `(k,)` at `times` `(k,)`."""
        if self.desired <= 0.0:
            pose = self.path.at(float(self.station), float(self.offset))[:3]
            pose[2] += self.yaw
            return np.tile(pose, (len(times), 1))
        rows = self.path.at(stations, self.sideways(times))[:, :3]
        rows[:, 2] += self.yaw
        if self.shifts is not None:
            rows[:, 2] += np.arctan2(self.drift(times), self.desired)
        return rows

    def advance(self, time: float, dt: float, gap: float, lead_speed: float) -> None:
        """One step of `dt` seconds from `time`, behind a lead `gap` metres ahead (infinite for none)."""
        if self.desired <= 0.0:
            return
        acceleration = follow(self.speed, self.desired, gap, lead_speed) if self.follows else 0.0
        if self.brakes is not None and time >= self.brakes[0]:
            acceleration = min(acceleration, -self.brakes[1])
        before = self.speed
        self.speed = max(0.0, before + acceleration * dt)
        self.station += (before + self.speed) / 2.0 * dt


def advance_all(actors: list[Actor], time: float, dt: float, ego: tuple[Path, float, float]) -> None:
    """One step of everybody; `ego` is (its route, its centre's station, its speed), a lead like others on its route."""
    route, ego_station, ego_speed = ego
    places = [(actor.path, actor.station, float(actor.sideways(time)), actor.speed, actor.size[0]) for actor in actors]
    places.append((route, ego_station, 0.0, ego_speed, 4.6))
    for actor, (path, station, offset, _, length) in zip(actors, places[:-1], strict=True):
        gap, lead_speed = np.inf, 0.0
        if actor.follows:
            for other_path, other_station, other_offset, other_speed, other_length in places:
                if other_path is path and other_station > station and abs(other_offset - offset) < 1.6:
                    distance = other_station - station - (length + other_length) / 2.0
                    if distance < gap:
                        gap, lead_speed = distance, other_speed
        actor.advance(time, dt, gap, lead_speed)
