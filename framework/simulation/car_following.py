"""Vehicles with regard for others: car-following and yielding along the way of their logs."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from framework.scene.frames import wrap_angle
from framework.scene.intelligent_driver import IntelligentDriver
from framework.simulation.geometry import crossing, direction, project
from framework.simulation.scenes import SceneBatch
from framework.simulation.traffic import Agents, logged

LOOK_M, LOOK_S = 60.0, 3.0
"""How far around a driver looks, and how far a way goes on, straight, beyond its log; how long everybody is thought to
keep their velocity."""
STANDS = 0.3
"""Whoever is slower than this (m/s) is not about to cross anybody's way."""
CROSSES = 0.5
"""Sine of the angle from which a way that meets one's own crosses it, instead of joining it."""
LOG_NOISE_M = 0.2
"""Bodies must be this far (m) within one's way to be in it: logs of parked cars brush the ways of passing ones."""
CATCHING_UP = 1.2
"""Whoever is behind the log drives up to so many times its top speed."""
PUNCTUAL_M = 0.01
"""Who is no farther behind the log than this drives as it shows, not as a model would."""
MIN_GAP_M = 0.1
"""Gaps to whoever is ahead (m) are taken to be no shorter."""
CLEARANCE_M, CLEARANCE_S = 1.0, 1.0
"""What whoever yields keeps free before the crossing place, and after the other has left it."""


class CarFollowing:
    """Vehicles drive along the way of their logs, never ahead of them, and keep their distance to whoever is in the
    way, the ego included; everybody else replays.

    Who is held up catches up as the intelligent driver model (its parameters: `acceleration` and `deceleration` in
    m/s^2, `headway_s`, `standstill_gap` in m) lets them, at no more than `CATCHING_UP` times the top speed of their
    log. An undisturbed agent is its log, to rounding. Where somebody's way crosses one's own: pedestrians, cyclists and
    animals go first, of two vehicles the one that would arrive first. `hardest_braking` (m/s^2) bounds all of it.
    """

    def __init__(
        self,
        acceleration: float = 1.6,
        deceleration: float = 2.0,
        headway_s: float = 1.3,
        standstill_gap: float = 2.5,
        hardest_braking: float = 6.0,
    ) -> None:
        self.driver = IntelligentDriver(acceleration, deceleration, headway_s, standstill_gap)
        self.hardest_braking = hardest_braking

    def advance(self, scenes: SceneBatch, agents: Agents, step: int, ego: Tensor, ego_speed: Tensor) -> Agents:
        """See `Traffic`."""
        log, drivers = logged(scenes, step + 1), _drivers(scenes, agents, step)
        restrained = self._restrained(drivers, _bodies(scenes, agents, ego, ego_speed))
        free = self._follow(drivers, torch.full_like(drivers.speed, torch.inf), drivers.speed)
        wanted = torch.where(drivers.punctual, restrained, torch.minimum(restrained, free))
        reached = (drivers.speed + wanted.clamp(min=-self.hardest_braking) * scenes.dt).clamp(min=0)
        station = drivers.station + (drivers.speed + reached) / 2 * scenes.dt
        held_up = station < log.stations[scenes.driven]
        rows = scenes.driven.clone()
        rows[scenes.driven] = held_up
        poses = _poses_at(scenes.logs[rows], scenes.stations[rows], station[held_up])
        log.poses[rows], log.stations[rows] = poses, station[held_up]
        log.velocities[rows] = reached[held_up, None] * direction(poses[..., 2])
        return log

    def _restrained(self, drivers: _Drivers, bodies: _Bodies) -> Tensor:
        """The least acceleration `(k,)` that anybody in the way or about to cross it asks for; infinite where nobody
        does."""
        asked = torch.full_like(drivers.speed, torch.inf)
        for counted, rule in ((bodies.present, self._keep_distance), (bodies.moving, self._give_way)):
            who, one, other = _pairs(drivers, bodies, counted)
            asked = asked.scatter_reduce(0, who, rule(one, other), "amin")
        return asked

    def _keep_distance(self, drivers: _Drivers, bodies: _Bodies) -> Tensor:
        """What each of `q` pairs of a driver and a body asks for `(q,)` when the body is ahead on the driver's way."""
        station, offset, heading = project(bodies.boxes[:, :2], drivers.path)
        turn = bodies.boxes[:, 2] - heading
        along, aside = (
            (x.abs() * bodies.boxes[:, 3] + y.abs() * bodies.boxes[:, 4]) / 2
            for x, y in ((turn.cos(), turn.sin()), (turn.sin(), turn.cos()))
        )
        leads = (station > drivers.station) & (offset.abs() < aside + drivers.size[:, 1] / 2 - LOG_NOISE_M)
        pace = (bodies.velocities * direction(heading)).sum(dim=-1).clamp(min=0)
        asked = self._follow(drivers, station - along - drivers.front, drivers.speed - pace)
        return torch.where(leads, asked, torch.inf)

    def _give_way(self, drivers: _Drivers, bodies: _Bodies) -> Tensor:
        """What each of `q` pairs asks for `(q,)` when the body is about to cross the driver's way and goes first."""
        place, arrival = _crossings(drivers, bodies)
        own_arrival = (place - drivers.station) / drivers.speed.clamp(min=1.0)
        leaves = arrival + (bodies.boxes[:, 3] + drivers.size[:, 1]) / bodies.velocities.norm(dim=-1) + CLEARANCE_S
        first = (bodies.walking | (arrival < own_arrival)) & (leaves > own_arrival)
        gap = place - bodies.boxes[:, 4] / 2 - CLEARANCE_M - drivers.front
        asked = self._follow(drivers, gap, drivers.speed)
        return torch.where(place.isfinite() & (place > drivers.front) & first, asked, torch.inf)

    def _follow(self, drivers: _Drivers, gap: Tensor, closing: Tensor) -> Tensor:
        """What the intelligent driver model asks for, for a `gap` and a `closing` speed, one of each driver."""
        free = self.driver.free_term(drivers.speed, drivers.desired)
        interaction = self.driver.interaction_term(drivers.speed, gap.clamp(min=MIN_GAP_M), closing)
        return self.driver.acceleration * (free - interaction)


@dataclass(frozen=True, slots=True)
class _Drivers:
    """The `k` vehicles of a batch that move by a model: `scene` and `agent` `(k,)` say which; `place` `(k, 2)`; `path`
    `(k, p, 2)` is the way of their log and straight on; `size` `(k, 2)`; `station` of their centre and `front` along
    it, `speed`, `desired` `(k,)`; `punctual` `(k,)` bool.
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
    punctual: Tensor


@dataclass(frozen=True, slots=True)
class _Bodies:
    """Agents and, last, the ego: `boxes` `(b, m, 5)`, `velocities` `(b, m, 2)`; `present`, `moving`, `walking`
    `(b, m)` bool. In pairs with drivers they have one dimension, `(q, ...)`.
    """

    boxes: Tensor
    velocities: Tensor
    present: Tensor
    moving: Tensor
    walking: Tensor


def _drivers(scenes: SceneBatch, agents: Agents, step: int) -> _Drivers:
    rows = scenes.driven
    logs, stations, station, size = scenes.logs[rows], scenes.stations[rows], agents.stations[rows], scenes.sizes[rows]
    beyond = logs[:, -1:, :2] + LOOK_M * direction(logs[:, -1:, 2])
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
        desired=(CATCHING_UP * scenes.rate_hz * stations.diff(dim=-1)).amax(dim=-1).clamp(min=1.0),
        punctual=station >= stations[:, step] - PUNCTUAL_M,
    )


def _bodies(scenes: SceneBatch, agents: Agents, ego: Tensor, ego_speed: Tensor) -> _Bodies:
    there = torch.ones_like(scenes.mapped)[:, None]
    velocities = torch.cat([agents.velocities, (ego_speed[:, None] * direction(ego[:, 2]))[:, None]], dim=1)
    present = torch.cat([agents.present, there], dim=1)
    return _Bodies(
        boxes=torch.cat([torch.cat([agents.poses, scenes.sizes], dim=-1), ego[:, None]], dim=1),
        velocities=velocities,
        present=present,
        moving=present & (velocities.norm(dim=-1) > STANDS),
        walking=torch.cat([scenes.walking, ~there], dim=1),
    )


def _pairs(drivers: _Drivers, bodies: _Bodies, counted: Tensor) -> tuple[Tensor, _Drivers, _Bodies]:
    """Every driver with everybody else of `counted` `(b, m)` within `LOOK_M`: the `q` drivers' indices and both."""
    apart = (bodies.boxes[drivers.scene, :, :2] - drivers.place[:, None]).norm(dim=-1)
    near = counted[drivers.scene] & (apart < LOOK_M)
    near[torch.arange(len(near), device=near.device), drivers.agent] = False
    who, body = near.nonzero(as_tuple=True)
    scene = drivers.scene[who]
    return (
        who,
        _Drivers(**{field.name: getattr(drivers, field.name)[who] for field in fields(drivers)}),
        _Bodies(**{field.name: getattr(bodies, field.name)[scene, body] for field in fields(bodies)}),
    )


def _crossings(drivers: _Drivers, bodies: _Bodies) -> tuple[Tensor, Tensor]:
    """For each of `q` pairs the first place ahead where the body's way of the next `LOOK_S` seconds crosses the
    driver's, as a station, and when the body is there (s), `(q,)` each; infinite and NaN where there is none."""
    ways, along = bodies.velocities * LOOK_S, drivers.path.diff(dim=1)
    places = bodies.boxes[:, :2]
    swept = torch.cat([places, places + ways], dim=-1)[:, None]
    share, other = crossing(torch.cat([drivers.path[:, :-1], drivers.path[:, 1:]], dim=-1), swept)
    lengths = along.norm(dim=-1)
    place = lengths.cumsum(dim=-1) - lengths + share * lengths
    sine = (along[..., 0] * ways[:, 1:] - along[..., 1] * ways[:, :1]).abs()
    steep = sine > CROSSES * lengths * ways.norm(dim=-1, keepdim=True)
    place = torch.where(steep & (place > drivers.station[:, None]), place, torch.inf)
    first, index = place.min(dim=-1)
    return first, other.gather(-1, index[:, None])[:, 0] * LOOK_S


def _poses_at(logs: Tensor, stations: Tensor, station: Tensor) -> Tensor:
    """The poses `(k, 3)` of `logs` `(k, t + 1, 3)`, whose places are `stations` `(k, t + 1)`, at `station` `(k,)`."""
    after = torch.searchsorted(stations, station[:, None]).clamp(1, stations.shape[1] - 1)
    low, high = (stations.gather(1, index) for index in (after - 1, after))
    share = (station[:, None] - low) / (high - low).clamp(min=1e-6)
    before, beyond = (logs.gather(1, index[..., None].expand(-1, -1, 3))[:, 0] for index in (after - 1, after))
    step = beyond - before
    step = torch.cat([step[:, :2], wrap_angle(step[:, 2:])], dim=-1)
    return before + share * step
