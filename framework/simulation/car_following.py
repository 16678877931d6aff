"""Reactive traffic: vehicles follow the paths of their logs, keep their distance and yield."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from framework.recipe.component import component
from framework.recipe.ranges import Acceleration, Gap, Seconds
from framework.scene.frames import wrap_angle
from framework.scene.intelligent_driver import IntelligentDriver
from framework.simulation.geometry import crossing, direction, project_onto
from framework.simulation.scenes import SceneBatch
from framework.simulation.traffic import Agents, logged

LOOK_AHEAD_M = 60.0
"""A driver sees this far around, and its path continues straight this far beyond its log."""
PREDICTION_S = 3.0
"""Crossing agents are predicted at constant velocity for this long."""
MIN_CROSSING_SPEED = 0.3
"""An agent slower than this (m/s) is not about to cross a path."""
MIN_CROSSING_SINE = 0.5
"""Sine of the smallest angle at which a path crosses the driver's; below, it merges."""
LOG_NOISE_M = 0.2
"""A body blocks a path only if it reaches this far (m) into it: logs of parked cars graze the paths of passing ones."""
CATCH_UP = 1.2
"""A vehicle behind its log drives up to this multiple of the log's top speed."""
ON_TIME_M = 0.01
"""A vehicle no farther than this behind its log follows the log, not the model."""
MIN_GAP_M = 0.1
"""Gaps to a lead (m) are taken to be no shorter."""
CLEARANCE_M, CLEARANCE_S = 1.0, 1.0
"""A yielding vehicle stops this far before the crossing, and waits this long after the other has left it."""


@component
class CarFollowing:
    """Vehicles drive along the paths of their logs, never ahead of them, and keep their distance to whatever is in the
    way, the ego included. All other agents replay their logs.

    A delayed vehicle catches up by the intelligent driver model, at no more than `CATCH_UP` times the top speed of its
    log. An undisturbed vehicle follows its log, to rounding. At crossing paths pedestrians, cyclists and animals have
    priority; of two vehicles, the one that would arrive first.

    Args:
        acceleration: the model's maximum acceleration (m/s^2).
        deceleration: the model's comfortable braking (m/s^2).
        headway_s: the time gap (s) kept to a lead.
        standstill_gap: the gap (m) kept to a standing lead.
        hardest_braking: the hardest braking (m/s^2) of any vehicle.
    """

    def __init__(
        self,
        acceleration: Acceleration = 1.6,
        deceleration: Acceleration = 2.0,
        headway_s: Seconds = 1.3,
        standstill_gap: Gap = 2.5,
        hardest_braking: Acceleration = 6.0,
    ) -> None:
        self.driver = IntelligentDriver(acceleration, deceleration, headway_s, standstill_gap)
        self.hardest_braking = hardest_braking

    def advance(self, scenes: SceneBatch, agents: Agents, step: int, ego: Tensor, ego_speed: Tensor) -> Agents:
        """See `Traffic`."""
        log, drivers = logged(scenes, step + 1), _drivers(scenes, agents, step)
        constrained = self._constrained(drivers, _bodies(scenes, agents, ego, ego_speed))
        free = self._follow(drivers, torch.full_like(drivers.speed, torch.inf), drivers.speed)
        wanted = torch.where(drivers.on_time, constrained, torch.minimum(constrained, free))
        reached = (drivers.speed + wanted.clamp(min=-self.hardest_braking) * scenes.dt).clamp(min=0)
        station = drivers.station + (drivers.speed + reached) / 2 * scenes.dt
        delayed = station < log.stations[scenes.driven]
        rows = scenes.driven.clone()
        rows[scenes.driven] = delayed
        poses = _poses_at(scenes.logs[rows], scenes.stations[rows], station[delayed])
        log.poses[rows], log.stations[rows] = poses, station[delayed]
        log.velocities[rows] = reached[delayed, None] * direction(poses[..., 2])
        return log

    def _constrained(self, drivers: _Drivers, bodies: _Bodies) -> Tensor:
        """The lowest acceleration `(k,)` that any body in or about to cross the path requires; infinite without one."""
        required = torch.full_like(drivers.speed, torch.inf)
        for counted, rule in ((bodies.present, self._keep_distance), (bodies.moving, self._give_way)):
            who, one, other = _pairs(drivers, bodies, counted)
            required = required.scatter_reduce(0, who, rule(one, other), "amin")
        return required

    def _keep_distance(self, drivers: _Drivers, bodies: _Bodies) -> Tensor:
        """The acceleration `(q,)` that each pair of driver and body requires while the body is ahead on the driver's
        path.
        """
        station, offset, heading = project_onto(bodies.boxes[:, :2], drivers.path)
        turn = bodies.boxes[:, 2] - heading
        along, lateral = (
            (x.abs() * bodies.boxes[:, 3] + y.abs() * bodies.boxes[:, 4]) / 2
            for x, y in ((turn.cos(), turn.sin()), (turn.sin(), turn.cos()))
        )
        leads = (station > drivers.station) & (offset.abs() < lateral + drivers.size[:, 1] / 2 - LOG_NOISE_M)
        lead_speed = (bodies.velocities * direction(heading)).sum(dim=-1).clamp(min=0)
        required = self._follow(drivers, station - along - drivers.front, drivers.speed - lead_speed)
        return torch.where(leads, required, torch.inf)

    def _give_way(self, drivers: _Drivers, bodies: _Bodies) -> Tensor:
        """The acceleration `(q,)` that each pair requires while the body is about to cross the driver's path first."""
        place, arrival = _crossings(drivers, bodies)
        own_arrival = (place - drivers.station) / drivers.speed.clamp(min=1.0)
        leaves = arrival + (bodies.boxes[:, 3] + drivers.size[:, 1]) / bodies.velocities.norm(dim=-1) + CLEARANCE_S
        first = (bodies.walking | (arrival < own_arrival)) & (leaves > own_arrival)
        gap = place - bodies.boxes[:, 4] / 2 - CLEARANCE_M - drivers.front
        required = self._follow(drivers, gap, drivers.speed)
        return torch.where(place.isfinite() & (place > drivers.front) & first, required, torch.inf)

    def _follow(self, drivers: _Drivers, gap: Tensor, closing: Tensor) -> Tensor:
        """The intelligent driver model's acceleration for each driver's `gap` (m) and `closing` speed (m/s)."""
        free = self.driver.free_term(drivers.speed, drivers.desired)
        interaction = self.driver.interaction_term(drivers.speed, gap.clamp(min=MIN_GAP_M), closing)
        return self.driver.acceleration * (free - interaction)


@dataclass(frozen=True, slots=True)
class _Drivers:
    """The `k` vehicles of a batch that move by the model.

    `scene`, `agent` `(k,)`: their indices; `place` `(k, 2)`; `path` `(k, p, 2)`: their log, continued straight; `size`
    `(k, 2)`; `station`, `front`, `speed`, `desired` `(k,)`: the stations of centre and front bumper along the path, and
    speeds; `on_time` `(k,)` bool: not behind the log.
    """

    scene: Tensor
    agent: Tensor
    place: Tensor
    path: Tensor
    size: Tensor
    station: Tensor
    front: Tensor
    speed: Tensor
    desired: Tensor
    on_time: Tensor


@dataclass(frozen=True, slots=True)
class _Bodies:
    """The agents and, last, the ego: `boxes` `(b, m, 5)`, `velocities` `(b, m, 2)`; `present`, `moving`, `walking`
    `(b, m)` bool. Paired with drivers, the leading dimension is `(q,)`.
    """

    boxes: Tensor
    velocities: Tensor
    present: Tensor
    moving: Tensor
    walking: Tensor


def _drivers(scenes: SceneBatch, agents: Agents, step: int) -> _Drivers:
    rows = scenes.driven
    logs, stations, station, size = scenes.logs[rows], scenes.stations[rows], agents.stations[rows], scenes.sizes[rows]
    beyond = logs[:, -1:, :2] + LOOK_AHEAD_M * direction(logs[:, -1:, 2])
    scene, agent = rows.nonzero(as_tuple=True)
    return _Drivers(
        scene=scene,
        agent=agent,
        place=agents.poses[rows][:, :2],
        path=torch.cat([logs[..., :2], beyond], dim=1),
        size=size,
        station=station,
        front=station + size[:, 0] / 2,
        speed=agents.velocities[rows].norm(dim=-1),
        desired=(CATCH_UP * scenes.rate_hz * stations.diff(dim=-1)).amax(dim=-1).clamp(min=1.0),
        on_time=station >= stations[:, step] - ON_TIME_M,
    )


def _bodies(scenes: SceneBatch, agents: Agents, ego: Tensor, ego_speed: Tensor) -> _Bodies:
    always = torch.ones_like(scenes.mapped)[:, None]
    velocities = torch.cat([agents.velocities, (ego_speed[:, None] * direction(ego[:, 2]))[:, None]], dim=1)
    present = torch.cat([agents.present, always], dim=1)
    return _Bodies(
        boxes=torch.cat([torch.cat([agents.poses, scenes.sizes], dim=-1), ego[:, None]], dim=1),
        velocities=velocities,
        present=present,
        moving=present & (velocities.norm(dim=-1) > MIN_CROSSING_SPEED),
        walking=torch.cat([scenes.walking, ~always], dim=1),
    )


def _pairs(drivers: _Drivers, bodies: _Bodies, counted: Tensor) -> tuple[Tensor, _Drivers, _Bodies]:
    """All pairs of a driver and another body of `counted` `(b, m)` within `LOOK_AHEAD_M`: the drivers' indices `(q,)`,
    and both sides.
    """
    distance = (bodies.boxes[drivers.scene, :, :2] - drivers.place[:, None]).norm(dim=-1)
    near = counted[drivers.scene] & (distance < LOOK_AHEAD_M)
    near[torch.arange(len(near), device=near.device), drivers.agent] = False
    who, body = near.nonzero(as_tuple=True)
    scene = drivers.scene[who]
    return (
        who,
        _Drivers(**{field.name: getattr(drivers, field.name)[who] for field in fields(drivers)}),
        _Bodies(**{field.name: getattr(bodies, field.name)[scene, body] for field in fields(bodies)}),
    )


def _crossings(drivers: _Drivers, bodies: _Bodies) -> tuple[Tensor, Tensor]:
    """For each pair the first crossing ahead of the driver's path with the body's path of the next `PREDICTION_S`
    seconds: its station and the body's arrival time (s), `(q,)` each; infinite and NaN without one."""
    displacements, along = bodies.velocities * PREDICTION_S, drivers.path.diff(dim=1)
    places = bodies.boxes[:, :2]
    swept = torch.cat([places, places + displacements], dim=-1)[:, None]
    fraction, other = crossing(torch.cat([drivers.path[:, :-1], drivers.path[:, 1:]], dim=-1), swept)
    lengths = along.norm(dim=-1)
    place = lengths.cumsum(dim=-1) - lengths + fraction * lengths
    sine = (along[..., 0] * displacements[:, 1:] - along[..., 1] * displacements[:, :1]).abs()
    steep = sine > MIN_CROSSING_SINE * lengths * displacements.norm(dim=-1, keepdim=True)
    place = torch.where(steep & (place > drivers.station[:, None]), place, torch.inf)
    first, index = place.min(dim=-1)
    return first, other.gather(-1, index[:, None])[:, 0] * PREDICTION_S


def _poses_at(logs: Tensor, stations: Tensor, station: Tensor) -> Tensor:
    """The poses `(k, 3)` at `station` `(k,)` of `logs` `(k, t + 1, 3)` with vertices at `stations` `(k, t + 1)`."""
    after = torch.searchsorted(stations, station[:, None]).clamp(1, stations.shape[1] - 1)
    low, high = (stations.gather(1, index) for index in (after - 1, after))
    fraction = (station[:, None] - low) / (high - low).clamp(min=1e-6)
    before, beyond = (logs.gather(1, index[..., None].expand(-1, -1, 3))[:, 0] for index in (after - 1, after))
    step = beyond - before
    step = torch.cat([step[:, :2], wrap_angle(step[:, 2:])], dim=-1)
    return before + fraction * step
