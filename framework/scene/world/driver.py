"""The expert: car-following and yielding along the route, pure pursuit of a lateral profile, unicycle controls
within bounds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from framework.scene.kinematics import EGO
from framework.scene.types import FloatArray
from framework.scene.world.actors import MAX_BRAKING, VEHICLES, Actor, follow
from framework.scene.world.road import Path

LATERAL_COMFORT, CURVE_BRAKING = 2.0, 1.5
"""Lateral acceleration (m/s^2) that the speed in curves is chosen for, and the braking before them."""
JERK = 4.0
"""Longitudinal jerk (m/s^3) in ordinary driving; tripled when something must be avoided."""
STRONGEST_ACCELERATION, MOST_CURVATURE, YAW_ACCELERATION = 2.2, 0.19, 1.6
LOOK_AHEAD_S, SHORTEST_LOOK_AHEAD = 0.7, 3.5
PREDICTION = np.arange(0.0, 5.01, 0.5)
"""Times (s) at which others are predicted."""
SIDE_MARGIN, YIELDING_GAP = 0.35, 1.0
"""Clearance (m) next to bodies under which they are in the way; distance kept from who crosses, beyond the standstill
gap."""
FREE = 10.0
"""An acceleration (m/s^2) that no one asks for: nothing limits."""

Wish = tuple[float, str]
"""An acceleration (m/s^2) with its cause: "open road", "curve", "obstacle", "flagger", "lead vehicle", "crossing
traffic" or a class name."""


@dataclass(frozen=True, slots=True)
class Detour:
    """The route driven `offset` metres to its left between the stations `begin` and `end`, eased in and out over
    `ramp` metres."""

    begin: float
    end: float
    offset: float
    ramp: float

    def at(self, station: FloatArray) -> FloatArray:
        """Offset (m) at `station`: half cosines in and out."""
        inwards = np.clip((station - self.begin + self.ramp) / self.ramp, 0.0, 1.0)
        outwards = np.clip((self.end + self.ramp - station) / self.ramp, 0.0, 1.0)
        return self.offset * (1.0 - np.cos(np.pi * np.minimum(inwards, outwards))) / 2.0


@dataclass(frozen=True, slots=True)
class Plan:
    """What the driver is told: the route, its speed limit (m/s), detours, and where to go slower or to wait.

    `slow` are (begin, end, speed) by stations; `stop_line` is where crossing traffic is waited for, `halt` a line
    not to be passed at all (a flagger's).
    """

    route: Path
    speed_limit: float
    detours: tuple[Detour, ...] = ()
    slow: tuple[tuple[float, float, float], ...] = ()
    stop_line: float | None = None
    halt: float | None = None

    def offset(self, station: FloatArray) -> FloatArray:
        """Wanted offset (m to the left of the route) at `station`."""
        return sum((detour.at(station) for detour in self.detours), start=np.zeros_like(station))


class Expert:
    """Drives the ego along a `Plan` from `state` (x, y, heading, speed of the rear axle), whose place on the route
    is `station`."""

    def __init__(self, plan: Plan, state: FloatArray, station: float):
        self.plan = plan
        self.station = station
        self.acceleration = follow(float(state[3]), plan.speed_limit)
        self.curvature = float(plan.route.at(station)[3])
        self.cause = "open road"

    def control(self, state: FloatArray, actors: list[Actor], time: float, dt: float) -> tuple[float, float]:
        """Acceleration (m/s^2) and curvature (1/m) for the next `dt` seconds; `cause` then says what the former is
        due to."""
        speed = float(state[3])
        self.station, _ = self.plan.route.project(state[:2], self.station + speed * dt)
        wanted, self.cause = min(self._cruise(speed, dt), self._yield(speed, actors, time))
        change = JERK * dt * (1.0 if wanted > -3.0 else 3.0)
        wanted = float(np.clip(wanted, self.acceleration - change, self.acceleration + change))
        self.acceleration = float(np.clip(wanted, -MAX_BRAKING, STRONGEST_ACCELERATION))
        if speed <= 0.0:
            self.acceleration = max(self.acceleration, 0.0)
        self.curvature = self._steer(state, speed, dt)
        return self.acceleration, self.curvature

    def _cruise(self, speed: float, dt: float) -> Wish:
        """Acceleration towards the speed that the limit, the curves ahead and the slow stretches allow."""
        ahead = np.arange(0.0, 45.0, 1.5)
        stations = self.station + ahead
        curvature = np.abs(self.plan.route.at(stations)[:, 3])
        comfortable = np.sqrt(LATERAL_COMFORT / np.maximum(curvature, 1e-4))
        allowed = comfortable
        for begin, end, slow in self.plan.slow:
            allowed = np.where((stations >= begin) & (stations <= end), np.minimum(allowed, slow), allowed)
        reachable = np.sqrt(allowed**2 + 2.0 * CURVE_BRAKING * np.maximum(ahead - speed * dt, 0.0))
        least = int(np.argmin(reachable))
        due_to = "curve" if allowed[least] == comfortable[least] else "obstacle"
        free = follow(speed, self.plan.speed_limit)
        return min((free, "open road"), (float(reachable[least] - speed) / 0.6, due_to))

    def _yield(self, speed: float, actors: list[Actor], time: float) -> Wish:
        """The least acceleration that a line to halt at, or anyone in (or soon in) the ego's way, asks for."""
        front = self.station + EGO.front
        wish: Wish = (FREE, "open road")
        if self.plan.halt is not None:
            wish = (follow(speed, self.plan.speed_limit, self.plan.halt - front), "flagger")
        watched = [actor for actor in actors if actor.watched]
        if not watched:
            return wish
        ahead = np.arange(front - 3.0, front + 70.0, 1.0)
        corridor = self.plan.route.at(ahead, self.plan.offset(ahead))
        poses = np.stack([actor.poses(time, PREDICTION) for actor in watched])
        relative = poses[:, :, None, :2] - corridor[:, :2]
        cos, sin = np.cos(corridor[:, 2]), np.sin(corridor[:, 2])
        along = np.abs(relative[..., 0] * cos + relative[..., 1] * sin)
        aside = np.abs(relative[..., 1] * cos - relative[..., 0] * sin)
        bearing = poses[:, :, None, 2] - corridor[:, 2]
        lengths, widths = (np.array([actor.size[k] for actor in watched])[:, None, None] for k in (0, 1))
        reach = (np.abs(np.cos(bearing)) * widths + np.abs(np.sin(bearing)) * lengths) / 2.0
        hits = (along <= 0.75) & (aside < reach + EGO.width / 2.0 + SIDE_MARGIN)
        for k in np.flatnonzero(hits.any(axis=(1, 2))):
            wish = min(wish, self._for_one(speed, front, ahead, watched[k], hits[k], bearing[k]))
        return wish

    def _for_one(
        self, speed: float, front: float, ahead: FloatArray, actor: Actor, hits: FloatArray, bearing: FloatArray
    ) -> Wish:
        """Acceleration for one actor, whose predicted `hits` `(times, stations)` say when and where it is in the
        way."""
        times, cells = np.nonzero(hits)
        first = int(times.min())
        cell = int(cells[times == first].min())
        cos = float(np.cos(bearing[first, cell]))
        extent = (abs(cos) * actor.size[0] + np.sqrt(max(0.0, 1.0 - cos**2)) * actor.size[1]) / 2.0
        gap = float(ahead[cell]) - extent - front
        limit = self.plan.speed_limit
        if actor.speed < 0.3 or cos > 0.7:
            if PREDICTION[first] > 1.5:
                return FREE, "open road"
            cause = "lead vehicle" if actor.label in VEHICLES else actor.label
            return follow(speed, limit, gap, max(0.0, actor.speed * cos)), cause
        cause = "crossing traffic" if actor.label in VEHICLES else actor.label
        arrival = max(0.0, float(ahead[cells].min()) - actor.size[0] / 2.0 - front) / max(speed, 3.0)
        entered, left = float(PREDICTION[first]), float(PREDICTION[times.max()])
        gone_before = left + 0.7 < arrival and actor.label in VEHICLES
        comes_after = entered > arrival + 3.0 + EGO.length / max(speed, 3.0)
        if gone_before or (comes_after and self.plan.stop_line is not None):
            return FREE, "open road"
        if self.plan.stop_line is not None and front < self.plan.stop_line + 1.0:
            gap = min(gap, self.plan.stop_line - front)
        return follow(speed, limit, gap - YIELDING_GAP), cause

    def _steer(self, state: FloatArray, speed: float, dt: float) -> float:
        """Curvature of the arc to a point of the planned line ahead (pure pursuit, Coulter 1992), rate limited."""
        look = self.station + max(SHORTEST_LOOK_AHEAD, LOOK_AHEAD_S * speed)
        target = self.plan.route.at(look, float(self.plan.offset(np.asarray(look))))
        dx, dy = float(target[0] - state[0]), float(target[1] - state[1])
        wanted = 2.0 * np.sin(np.arctan2(dy, dx) - float(state[2])) / max(np.hypot(dx, dy), 1.0)
        change = YAW_ACCELERATION * dt / max(speed, 2.0)
        wanted = np.clip(wanted, self.curvature - change, self.curvature + change)
        bound = min(MOST_CURVATURE, 4.0 / max(speed, 0.1) ** 2)
        return float(np.clip(wanted, -bound, bound))
