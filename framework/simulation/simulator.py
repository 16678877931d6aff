"""The closed-loop simulator: a batch of egos driven by controls among traffic, one step per period of the scenes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from framework.recipe.component import component
from framework.recipe.ranges import Gap, Metres
from framework.scene.kinematics import EGO, Vehicle, ego_box
from framework.scene.types import Scene, SceneError
from framework.simulation.assessment import assess, encounters, is_off_road
from framework.simulation.dynamics import Dynamics, Unicycle
from framework.simulation.scenes import SceneBatch
from framework.simulation.traffic import Agents, Replay, Traffic, logged, stack_agents


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
    """`(b,)` bool: whether the body is off the drivable surface now, or was since the moment before."""
    time_to_collision: Tensor
    """`(b,)` (s): infinite where no agent is on collision course."""
    ran_light: Tensor
    """`(b,)` bool: whether the ego's front has crossed a closed stop line."""


def hold(now: Moment, later: Moment, ended: Tensor) -> Moment:
    """`later` with what is said of the egos that have `ended` `(b,)` as it is `now`; the other road users go on."""

    def held(before: Tensor, after: Tensor) -> Tensor:
        return torch.where(ended.reshape(-1, *[1] * (after.ndim - 1)), before, after)

    return replace(
        later,
        ego=held(now.ego, later.ego),
        curvature=held(now.curvature, later.curvature),
        touched=held(now.touched, later.touched),
        collided=held(now.collided, later.collided),
        fault=held(now.fault, later.fault),
        off_road=held(now.off_road, later.off_road),
        time_to_collision=held(now.time_to_collision, later.time_to_collision),
        ran_light=held(now.ran_light, later.ran_light),
    )


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
    road when any corner is off the drivable surface (as in NAVSIM), or crosses its boundary between two samples. Times
    to collision assume constant velocities and leave out agents behind the ego. Agents that overlap the ego from the
    start are annotation errors and never count.

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
        agents, body = logged(scenes, 0), ego_box(scenes.initial, self.vehicle)[:, None]
        boxes = torch.cat([agents.poses, scenes.sizes], dim=-1)[:, None]
        touched, time = (
            values[:, 0]
            for values in encounters(
                boxes, agents.present[:, None], agents.velocities[:, None], body, scenes.initial[:, None, 3]
            )
        )
        time = torch.where(touched, torch.inf, time)
        return Moment(
            step=0,
            ego=scenes.initial,
            curvature=scenes.curvature,
            agents=agents,
            touched=touched,
            collided=torch.zeros_like(scenes.mapped),
            fault=torch.zeros_like(scenes.speed_limit),
            off_road=is_off_road(scenes, body)[:, 0],
            time_to_collision=time.amin(dim=-1),
            ran_light=torch.zeros_like(scenes.mapped),
        )

    def step(self, scenes: SceneBatch, moment: Moment, controls: Tensor) -> Moment:
        """See `Environment`."""
        ego, curvature = self._closed_loop_dynamics(moment.ego, moment.curvature, controls, scenes.dt)
        return self.place(scenes, moment, ego, curvature)

    def require_logs(self, scenes: SceneBatch, steps: int) -> None:
        """Raise `SceneError` unless the scenes' logs have `steps` periods."""
        if steps > scenes.steps:
            raise SceneError(
                f"scene {scenes.ids[0]}: its log ends after {scenes.steps} periods of {scenes.dt:g} s; drive no "
                "longer, or cut plans to that (the action codec's steps)"
            )

    def place(self, scenes: SceneBatch, moment: Moment, ego: Tensor, curvature: Tensor) -> Moment:
        """The moment one period later, with the ego placed in state `ego` `(b, 4)`, reached along `curvature` `(b,)`;
        egos whose episode has ended stay.

        Raises `SceneError` past the end of the logs.
        """
        self.require_logs(scenes, moment.step + 1)
        ended = moment.fault > 0
        ego = torch.where(ended[:, None], moment.ego, ego)
        agents = self.traffic.advance(
            scenes, moment.agents, moment.step, ego_box(moment.ego, self.vehicle), moment.ego[:, 3]
        )
        states, both = torch.stack([moment.ego, ego], dim=1), stack_agents([moment.agents, agents])
        found = assess(scenes, self.vehicle, states, both, moment.step, moment.touched, ended)
        return Moment(
            step=moment.step + 1,
            ego=ego,
            curvature=torch.where(ended, moment.curvature, curvature),
            agents=agents,
            touched=found.touched[:, 0],
            collided=moment.collided | found.collided[:, 0],
            fault=torch.maximum(moment.fault, found.fault[:, 0]),
            off_road=found.off_road[:, 0],
            time_to_collision=torch.where(ended, moment.time_to_collision, found.time_to_collision[:, 0]),
            ran_light=moment.ran_light | found.ran_light[:, 0],
        )
