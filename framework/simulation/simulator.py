"""The closed-loop simulator: a batch of egos driven by controls among traffic, in steps of the scenes' period."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from framework.scene.kinematics import EGO, Vehicle, ego_box
from framework.scene.types import Scene, SceneError
from framework.simulation.dynamics import Dynamics, Unicycle
from framework.simulation.geometry import approach, corners, crossing, direction, inside, project
from framework.simulation.scenes import SceneBatch
from framework.simulation.traffic import Agents, Replay, Traffic, logged

STANDING = 0.05
"""Slower than this (m/s) is standing (nuPlan)."""
BEHIND = math.cos(math.radians(150.0))
"""Cosine of the bearing beyond which somebody is behind the ego (nuPlan)."""
LANE_M = 1.9
"""How far (m) from the route the body may reach and still be in its lane."""
THING = 0.5
"""What hitting a thing counts, where hitting a road user counts 1 (NAVSIM)."""


@dataclass(frozen=True, slots=True)
class Moment:
    """A batch of `b` scenes at one `step`, 0 at the current time.

    `ego` `(b, 4)`; `curvature` `(b,)` driven last (1/m). `agents`: see `Agents`. `touched` `(b, n)` bool: who has met
    the ego's body until now; each meeting is judged once, at its beginning. `collided` `(b,)` bool: whether there was
    any; `fault` `(b,)`: 0, `THING` or 1, the worst that was the ego's fault. An ego with a fault stands where it is:
    its episode has ended. `off_road` `(b,)` bool: whether the body is not on the drivable surface now.
    `time_to_collision` `(b,)` (s): infinite where nobody's way leads to the ego's. `ran_light` `(b,)` bool: whether the
    front has crossed a closed stop line until now.
    """

    step: int
    ego: Tensor
    curvature: Tensor
    agents: Agents
    touched: Tensor
    collided: Tensor
    fault: Tensor
    off_road: Tensor
    time_to_collision: Tensor
    ran_light: Tensor


class Environment(Protocol):
    """What episodes are driven in: the simulator here, or one that a plugin connects."""

    def start(self, scenes: SceneBatch) -> Moment:
        """The current time."""
        ...

    def step(self, scenes: SceneBatch, moment: Moment, controls: Tensor) -> Moment:
        """One period later, `controls` `(b, 2)` being acceleration (m/s^2) and curvature (1/m)."""
        ...


@runtime_checkable
class SceneMaker(Protocol):
    """An environment whose scenes are its own."""

    def scenes(self, seeds: Sequence[int]) -> Sequence[Scene]:
        """One for each of `seeds`: the same for the same seed."""
        ...


class Simulator:
    """Egos of one vehicle's measures (m) that move by `dynamics` among `traffic` (by default it replays its logs); see
    `Environment`.

    Without `dynamics` controls are carried out by `Unicycle`, and whole plans in open loop exactly as planned.

    A collision is the ego's fault as in nuPlan: it drove into somebody who stood or who met its front, or was met from
    the side when not in its lane; not when it stood or was run into from behind. Lanes are not mapped: in its lane is a
    body that is on the drivable surface and no farther than `LANE_M` from the route. Off the road is a body one of
    whose corners is not on the drivable surface (as in NAVSIM). Times to collision assume that everybody keeps their
    velocity, and leave out who is behind. A body that the ego overlaps from the beginning is a fault of annotation, not
    of driving.
    """

    def __init__(
        self,
        traffic: Traffic | None = None,
        dynamics: Dynamics | None = None,
        vehicle_length: float = EGO.length,
        vehicle_width: float = EGO.width,
        vehicle_rear_overhang: float = EGO.rear_overhang,
    ) -> None:
        self.traffic = Replay() if traffic is None else traffic
        self.dynamics = dynamics
        self._moved = Unicycle() if dynamics is None else dynamics
        self.vehicle = Vehicle(length=vehicle_length, width=vehicle_width, rear_overhang=vehicle_rear_overhang)

    def start(self, scenes: SceneBatch) -> Moment:
        """See `Environment`."""
        agents, body = logged(scenes, 0), ego_box(scenes.initial, self.vehicle)
        touched, time = _encounters(scenes, agents, body, scenes.initial[:, 3])
        time = torch.where(touched, torch.inf, time)
        return Moment(
            step=0,
            ego=scenes.initial,
            curvature=scenes.curvature,
            agents=agents,
            touched=touched,
            collided=torch.zeros_like(scenes.mapped),
            fault=torch.zeros_like(scenes.speed_limit),
            off_road=_is_off_road(scenes, body),
            time_to_collision=time.amin(dim=-1),
            ran_light=torch.zeros_like(scenes.mapped),
        )

    def step(self, scenes: SceneBatch, moment: Moment, controls: Tensor) -> Moment:
        """See `Environment`."""
        ego, curvature = self._moved(moment.ego, moment.curvature, controls, scenes.dt)
        return self.place(scenes, moment, ego, curvature)

    def place(self, scenes: SceneBatch, moment: Moment, ego: Tensor, curvature: Tensor) -> Moment:
        """One period later with the ego put in state `ego` `(b, 4)`, along `curvature` `(b,)`, where it has not
        ended. Raises `SceneError` past the end of the logs."""
        if moment.step >= scenes.steps:
            raise SceneError(
                f"scene {scenes.ids[0]}: its log ends after {scenes.steps} periods of {scenes.dt:g} s; drive no "
                "longer, or cut plans to that (the action codec's steps)"
            )
        ended = moment.fault > 0
        ego = torch.where(ended[:, None], moment.ego, ego)
        before = ego_box(moment.ego, self.vehicle)
        agents = self.traffic.advance(scenes, moment.agents, moment.step, before, moment.ego[:, 3])
        body = ego_box(ego, self.vehicle)
        off_road = _is_off_road(scenes, body)
        overlap, time = _encounters(scenes, agents, body, ego[:, 3])
        met = overlap & ~moment.touched & ~ended[:, None]
        moving = torch.maximum(moment.ego[:, 3], ego[:, 3]) > STANDING
        fault = _faults(scenes, agents, met & moving[:, None], body, off_road)
        touched = moment.touched | overlap
        return Moment(
            step=moment.step + 1,
            ego=ego,
            curvature=torch.where(ended, moment.curvature, curvature),
            agents=agents,
            touched=touched,
            collided=moment.collided | met.any(dim=-1),
            fault=torch.maximum(moment.fault, fault),
            off_road=off_road,
            time_to_collision=torch.where(touched, torch.inf, time).amin(dim=-1),
            ran_light=moment.ran_light | _runs_light(scenes, before, body, moment.step),
        )


def _encounters(scenes: SceneBatch, agents: Agents, body: Tensor, speed: Tensor) -> tuple[Tensor, Tensor]:
    """Whom the ego's `body` `(b, 5)` overlaps `(b, n)`, bool, and the times to collision `(b, n)` with those who are
    not behind."""
    boxes = torch.cat([agents.poses, scenes.sizes], dim=-1)
    velocity = agents.velocities - (speed[:, None] * direction(body[:, 2]))[:, None]
    overlap, time = approach(body[:, None], boxes, velocity)
    counts = agents.present & ~_are_behind(agents.poses, body)
    return overlap & agents.present, torch.where(counts, time, torch.inf)


def _are_behind(poses: Tensor, body: Tensor) -> Tensor:
    """Which agents' centres `(b, n)` are within 30 degrees of straight behind the ego's."""
    relative = poses[..., :2] - body[:, None, :2]
    ahead = (relative * direction(body[:, 2])[:, None]).sum(dim=-1)
    return ahead < BEHIND * relative.norm(dim=-1)


def _is_off_road(scenes: SceneBatch, body: Tensor) -> Tensor:
    """Whether `(b,)` a corner of the body is not on the drivable surface; never where there is no map."""
    return scenes.mapped & ~inside(corners(body), scenes.surface).all(dim=-1)


def _runs_light(scenes: SceneBatch, before: Tensor, body: Tensor, step: int) -> Tensor:
    """Whether `(b,)` the middle of the front, on its straight way from one body to the next, crosses a closed line."""
    way = torch.cat([box[:, :2] + direction(box[:, 2]) * box[:, 3:4] / 2 for box in (before, body)], dim=-1)
    share, _ = crossing(way[:, None], scenes.red_lights[..., :4])
    time = (step + share) * scenes.dt
    return ((time >= scenes.red_lights[..., 4]) & (time < scenes.red_lights[..., 5])).any(dim=-1)


def _faults(scenes: SceneBatch, agents: Agents, met: Tensor, body: Tensor, off_road: Tensor) -> Tensor:
    """The worst `(b,)` of the ego's faults among those whom it has just `met` in moving `(b, n)`: 0, `THING` or 1."""
    faults = torch.zeros_like(scenes.speed_limit)
    rows = met.any(dim=-1).nonzero()[:, 0]
    if not len(rows):
        return faults
    boxes = torch.cat([agents.poses, scenes.sizes], dim=-1)[rows]
    bumper = body[rows]
    bumper[:, :2] += direction(bumper[:, 2]) * bumper[:, 3:4] / 2
    bumper[:, 3] = 0.0
    front, _ = approach(bumper[:, None], boxes, torch.zeros_like(boxes[..., :2]))
    _, offset, _ = project(corners(body[rows]), scenes.route[rows][:, None])
    strayed = off_road[rows] | (offset.abs() > LANE_M).any(dim=-1)
    stood = agents.velocities[rows].norm(dim=-1) <= STANDING
    blamed = stood | (~_are_behind(agents.poses[rows], body[rows]) & (front | strayed[:, None]))
    weight = torch.where(scenes.alive[rows], torch.ones_like(boxes[..., 0]), THING)
    faults[rows] = torch.where(met[rows] & blamed, weight, torch.zeros_like(weight)).amax(dim=-1)
    return faults
