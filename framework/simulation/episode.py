"""Episodes: a plan carried out to its end (open loop), or a planner that replans on the way (closed loop)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from framework.scene.kinematics import unicycle_controls
from framework.scene.types import SceneError
from framework.simulation.assessment import assess
from framework.simulation.scenes import SceneBatch
from framework.simulation.simulator import Environment, Moment, Simulator
from framework.simulation.traffic import Replay, logged, stack_agents

FALLBACK_BRAKING = 3.0
"""The braking (m/s^2) of an ego without a plan."""

Planner = Callable[[Sequence[Moment], SceneBatch], Tensor]
"""Maps the moments so far, the last one being the present, and the scenes to controls `(b, t, 2)`: acceleration (m/s^2)
and curvature (1/m) for the next t periods."""


def whole_periods(key: str, seconds: float, rate_hz: float) -> int:
    """`seconds` in periods of `rate_hz`. Raises `ValueError` with the recipe's `key` where they are no whole number."""
    periods = seconds * rate_hz
    if abs(periods - round(periods)) > 1e-6:
        raise ValueError(
            f"{key}: {seconds:g} s are {periods:g} of the scenes' periods; give a multiple of {1 / rate_hz:g} s"
        )
    return round(periods)


@dataclass(frozen=True, slots=True)
class Episodes:
    """`b` scenes driven for `t` periods."""

    scenes: SceneBatch
    """The scenes."""
    ego: Tensor
    """`(b, t + 1, 4)`: the ego's states from the current time on."""
    underway: Tensor
    """`(b, t)` bool: the periods up to and including the one in which the ego caused a collision."""
    off_road: Tensor
    """`(b, t)` bool: whether the body is off the drivable surface at each period's end, or was on the way there."""
    time_to_collision: Tensor
    """`(b, t)` (s), at each period's end; infinite where nothing is in the way."""
    collided: Tensor
    """`(b,)` bool: whether the ego met anybody, whoever caused it."""
    fault: Tensor
    """`(b,)`: the worst collision that the ego caused: 0 for none, 1 with a road user, `OBJECT_FAULT` (0.5) with an
    object. The ego stays where it is from then on.
    """
    ran_light: Tensor
    """`(b,)` bool: whether the ego crossed a closed stop line."""
    undriven: Tensor
    """`(b,)` bool: whether the planner gave controls that are not finite."""

    def __len__(self) -> int:
        return len(self.scenes)

    def take(self, rows: Sequence[int]) -> Episodes:
        """The episodes `rows`, in that order."""
        index = torch.tensor(rows, dtype=torch.int64, device=self.ego.device)
        names = ("ego", "underway", "off_road", "time_to_collision", "collided", "fault", "ran_light", "undriven")
        return replace(self, scenes=self.scenes.take(rows), **{name: getattr(self, name)[index] for name in names})


def record_episodes(scenes: SceneBatch, moments: Sequence[Moment]) -> Episodes:
    """The episodes that consist of `moments`, from the current time on."""
    later = moments[1:]
    return Episodes(
        scenes=scenes,
        ego=torch.stack([moment.ego for moment in moments], dim=1),
        underway=torch.stack([moment.fault == 0 for moment in moments[:-1]], dim=1),
        off_road=torch.stack([moment.off_road for moment in later], dim=1),
        time_to_collision=torch.stack([moment.time_to_collision for moment in later], dim=1),
        collided=moments[-1].collided,
        fault=moments[-1].fault,
        ran_light=moments[-1].ran_light,
        undriven=torch.zeros_like(moments[-1].collided),
    )


@torch.no_grad()
def drive(
    environment: Environment, scenes: SceneBatch, planner: Planner, steps: int, replan_every: int = 1
) -> Episodes:
    """Drive `steps` periods in closed loop: `planner` replans every `replan_every` periods.

    An ego whose controls hold NaN or infinity keeps its curvature and brakes by `FALLBACK_BRAKING`; its episode is
    `undriven`. Raises `SceneError` when a plan is too short or not for all scenes.
    """
    moments, undriven = [environment.start(scenes)], torch.zeros_like(scenes.mapped)
    for step in range(steps):
        if step % replan_every == 0:
            controls = planner(moments, scenes)
            _require_plan(controls, scenes, replan_every)
            wrong = ~controls.isfinite().flatten(1).all(dim=1)
            undriven = undriven | wrong
            brakes = torch.stack(
                [torch.full_like(moments[-1].curvature, -FALLBACK_BRAKING), moments[-1].curvature], dim=-1
            )
            controls = torch.where(wrong[:, None, None], brakes[:, None], controls)
        moments.append(environment.step(scenes, moments[-1], controls[:, step % replan_every]))
    return replace(record_episodes(scenes, moments), undriven=undriven)


@torch.no_grad()
def follow_plans(simulator: Simulator, scenes: SceneBatch, plans: Tensor) -> Episodes:
    """Drive the plans' states `(b, t, 4)` to their ends in open loop.

    The ego follows its plan exactly. A simulator with dynamics instead carries out the controls that would lead a
    unicycle along the plan. Raises `SceneError` when plans are longer than the scenes' logs.
    """
    steps = plans.shape[1]
    if simulator.dynamics is not None:
        controls = unicycle_controls(scenes.initial, plans, scenes.dt)
        return drive(simulator, scenes, lambda moments, batch: controls, steps, steps)
    if isinstance(simulator.traffic, Replay):
        return _among_logs(simulator, scenes, plans)
    moments = [simulator.start(scenes)]
    for step in range(steps):
        moments.append(simulator.place(scenes, moments[-1], plans[:, step], moments[-1].curvature))
    return record_episodes(scenes, moments)


def _among_logs(simulator: Simulator, scenes: SceneBatch, plans: Tensor) -> Episodes:
    """The episodes of `plans` among traffic that takes no notice of the ego: all periods are assessed at once."""
    steps = plans.shape[1]
    simulator.require_logs(scenes, steps)
    start, ego = simulator.start(scenes), torch.cat([scenes.initial[:, None], plans], dim=1)
    agents = stack_agents([logged(scenes, step) for step in range(steps + 1)])
    found = assess(scenes, simulator.vehicle, ego, agents, 0, start.touched, start.fault > 0)
    underway = torch.cat([start.fault[:, None] == 0, found.fault[:, :-1] == 0], dim=1)
    last = underway.sum(dim=1, keepdim=True) - 1
    held = torch.minimum(torch.arange(steps, device=last.device), last)
    reached = torch.cat([torch.zeros_like(last), held + 1], dim=1)
    return Episodes(
        scenes=scenes,
        ego=ego.gather(1, reached[..., None].expand_as(ego)),
        underway=underway,
        off_road=found.off_road.gather(1, held),
        time_to_collision=found.time_to_collision.gather(1, held),
        collided=found.collided[:, -1],
        fault=found.fault[:, -1],
        ran_light=found.ran_light.gather(1, last)[:, 0],
        undriven=torch.zeros_like(scenes.mapped),
    )


def _require_plan(controls: Tensor, scenes: SceneBatch, periods: int) -> None:
    if controls.ndim != 3 or controls.shape[::2] != (len(scenes), 2) or controls.shape[1] < periods:
        raise SceneError(
            f"the planner gave controls of shape {tuple(controls.shape)}; give ({len(scenes)}, {periods} or more, 2)"
        )
