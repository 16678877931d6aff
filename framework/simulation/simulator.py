"""The closed-loop simulator: a batch of egos driven by controls among traffic, one step per period of the scenes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from framework.recipe.component import component
from framework.recipe.ranges import Gap, Metres
from framework.scene.kinematics import EGO, Vehicle, ego_box
from framework.scene.types import Scene, SceneError
from framework.simulation.dynamics import Dynamics, Unicycle
from framework.simulation.geometry import approach, corners, crossing, direction, inside, project_onto
from framework.simulation.scenes import SceneBatch
from framework.simulation.traffic import Agents, Replay, Traffic, logged

STANDSTILL_SPEED = 0.05
"""Slower than this (m/s) counts as standing (nuPlan)."""
BEHIND_COSINE = math.cos(math.radians(150.0))
"""Cosine of the bearing beyond which an agent is behind the ego (nuPlan)."""
LANE_HALF_WIDTH_M = 1.9
"""The body is in its lane while it reaches no farther (m) from the route."""
OBJECT_FAULT = 0.5
"""The fault of hitting an object; hitting a road user counts 1 (NAVSIM)."""


@dataclass(frozen=True, slots=True)
class Moment:
    """A batch of `b` scenes at one time."""

    step: int
    """Periods since the current time."""
    ego: Tensor
    """`(b, 4)`: the ego's states."""
    curvature: Tensor
    """`(b,)` (1/m): the curvature driven last."""
    agents: Agents
    """The other road users."""
    touched: Tensor
    """`(b, n)` bool: the agents that have overlapped the ego's body so far. Each collision is judged once, at its
    start."""
    collided: Tensor
    """`(b,)` bool: whether the ego has met anybody."""
    fault: Tensor
    """`(b,)`: 0, `OBJECT_FAULT` or 1, the worst collision that the ego caused. An ego with a fault stays where it is:
    its episode has ended."""
    off_road: Tensor
    """`(b,)` bool: whether the body is off the drivable surface now."""
    time_to_collision: Tensor
    """`(b,)` (s): infinite where no agent is on collision course."""
    ran_light: Tensor
    """`(b,)` bool: whether the ego's front has crossed a closed stop line."""


class Environment(Protocol):
    """Where episodes are driven: the simulator of this module, or one that a plugin connects."""

    def start(self, scenes: SceneBatch) -> Moment:
        """The moment at the current time."""
        ...

    def step(self, scenes: SceneBatch, moment: Moment, controls: Tensor) -> Moment:
        """The moment one period later, under `controls` `(b, 2)`: acceleration (m/s^2) and curvature (1/m)."""
        ...


@runtime_checkable
class SceneMaker(Protocol):
    """An environment that makes its own scenes."""

    def scenes(self, seeds: Sequence[int]) -> Sequence[Scene]:
        """One scene per seed; the same seed gives the same scene."""
        ...


@component
class Simulator:
    """The built-in `Environment`: egos of one vehicle that move by `dynamics` among `traffic`.

    A collision is the ego's fault as in nuPlan: the ego moved, and the agent stood or met its front, or met its side
    while the ego was not in its lane. Being hit while standing or from behind is no fault. Lanes are not mapped: a body
    is in its lane while it is on the drivable surface and within `LANE_HALF_WIDTH_M` of the route. A body is off the
    road when any corner is off the drivable surface (as in NAVSIM). Times to collision assume constant velocities and
    leave out agents behind the ego. Agents that overlap the ego from the start are annotation errors and never count.

    Args:
        traffic: moves the other road users; None replays their logs.
        dynamics: carries out the controls. None follows plans in open loop exactly, and controls in closed loop by
            `Unicycle`.
        vehicle_length: the ego's length (m).
        vehicle_width: the ego's width (m).
        vehicle_rear_overhang: the rear axle's distance (m) ahead of the rear bumper.
    """

    def __init__(
        self,
        traffic: Traffic | None = None,
        dynamics: Dynamics | None = None,
        vehicle_length: Metres = EGO.length,
        vehicle_width: Metres = EGO.width,
        vehicle_rear_overhang: Gap = EGO.rear_overhang,
    ) -> None:
        self.traffic = Replay() if traffic is None else traffic
        self.dynamics = dynamics
        self._closed_loop_dynamics = Unicycle() if dynamics is None else dynamics
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
        ego, curvature = self._closed_loop_dynamics(moment.ego, moment.curvature, controls, scenes.dt)
        return self.place(scenes, moment, ego, curvature)

    def place(self, scenes: SceneBatch, moment: Moment, ego: Tensor, curvature: Tensor) -> Moment:
        """The moment one period later, with the ego placed in state `ego` `(b, 4)`, reached along `curvature` `(b,)`;
        egos whose episode has ended stay.

        Raises `SceneError` past the end of the logs.
        """
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
        moving = torch.maximum(moment.ego[:, 3], ego[:, 3]) > STANDSTILL_SPEED
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
    """The agents that the ego's `body` `(b, 5)` overlaps `(b, n)`, bool, and the times to collision `(b, n)`, infinite
    for agents behind."""
    boxes = torch.cat([agents.poses, scenes.sizes], dim=-1)
    velocity = agents.velocities - (speed[:, None] * direction(body[:, 2]))[:, None]
    overlap, time = approach(body[:, None], boxes, velocity)
    counts = agents.present & ~_are_behind(agents.poses, body)
    return overlap & agents.present, torch.where(counts, time, torch.inf)


def _are_behind(poses: Tensor, body: Tensor) -> Tensor:
    """Which agents `(b, n)` are behind the ego: their centres within 30 degrees of straight back."""
    relative = poses[..., :2] - body[:, None, :2]
    ahead = (relative * direction(body[:, 2])[:, None]).sum(dim=-1)
    return ahead < BEHIND_COSINE * relative.norm(dim=-1)


def _is_off_road(scenes: SceneBatch, body: Tensor) -> Tensor:
    """Whether `(b,)` any corner of the body is off the drivable surface; False where there is no map."""
    return scenes.mapped & ~inside(corners(body), scenes.surface).all(dim=-1)


def _runs_light(scenes: SceneBatch, before: Tensor, body: Tensor, step: int) -> Tensor:
    """Whether `(b,)` the middle of the front crosses a closed stop line on the straight path between two bodies."""
    path = torch.cat([box[:, :2] + direction(box[:, 2]) * box[:, 3:4] / 2 for box in (before, body)], dim=-1)
    fraction, _ = crossing(path[:, None], scenes.red_lights[..., :4])
    time = (step + fraction) * scenes.dt
    return ((time >= scenes.red_lights[..., 4]) & (time < scenes.red_lights[..., 5])).any(dim=-1)


def _faults(scenes: SceneBatch, agents: Agents, met: Tensor, body: Tensor, off_road: Tensor) -> Tensor:
    """The ego's worst fault `(b,)` among the agents that it has just `met` while moving `(b, n)`: 0, `OBJECT_FAULT` or
    1."""
    faults = torch.zeros_like(scenes.speed_limit)
    rows = met.any(dim=-1).nonzero()[:, 0]
    if not len(rows):
        return faults
    boxes = torch.cat([agents.poses, scenes.sizes], dim=-1)[rows]
    bumper = body[rows]
    bumper[:, :2] += direction(bumper[:, 2]) * bumper[:, 3:4] / 2
    bumper[:, 3] = 0.0
    front, _ = approach(bumper[:, None], boxes, torch.zeros_like(boxes[..., :2]))
    _, offset, _ = project_onto(corners(body[rows]), scenes.route[rows][:, None])
    strayed = off_road[rows] | (offset.abs() > LANE_HALF_WIDTH_M).any(dim=-1)
    stood = agents.velocities[rows].norm(dim=-1) <= STANDSTILL_SPEED
    blamed = stood | (~_are_behind(agents.poses[rows], body[rows]) & (front | strayed[:, None]))
    weight = torch.where(scenes.alive[rows], torch.ones_like(boxes[..., 0]), OBJECT_FAULT)
    faults[rows] = torch.where(met[rows] & blamed, weight, torch.zeros_like(weight)).amax(dim=-1)
    return faults
