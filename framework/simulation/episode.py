"""Episodes: what happens when a plan is carried out (open loop), or when a planner is asked again and again (closed
loop)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from framework.scene.kinematics import unicycle_controls
from framework.scene.types import SceneError
from framework.simulation.scenes import SceneBatch
from framework.simulation.simulator import Environment, Moment, Simulator

Planner = Callable[[Sequence[Moment], SceneBatch], Tensor]
"""Takes the moments until now, the last being the present, and the scenes; gives controls `(b, t, 2)`, acceleration
(m/s^2) and curvature (1/m) for the next t periods."""


@dataclass(frozen=True, slots=True)
class Episodes:
    """`b` scenes driven for `t` periods.

    `ego` `(b, t + 1, 4)`: its states from the current time on. `underway` `(b, t)` bool: which periods were driven, up
    to the one that ended in a collision by the ego's own fault. `off_road` `(b, t)` bool and `time_to_collision`
    `(b, t)` (s) at the periods' ends; `collided`, `fault` and `ran_light` `(b,)`: see `Moment`, at the end.
    """

    scenes: SceneBatch
    ego: Tensor
    underway: Tensor
    off_road: Tensor
    time_to_collision: Tensor
    collided: Tensor
    fault: Tensor
    ran_light: Tensor

    def __len__(self) -> int:
        return len(self.scenes)

    def take(self, rows: Sequence[int]) -> Episodes:
        """The episodes `rows`, in that order."""
        index = torch.tensor(rows, dtype=torch.int64, device=self.ego.device)
        names = ("ego", "underway", "off_road", "time_to_collision", "collided", "fault", "ran_light")
        return replace(self, scenes=self.scenes.take(rows), **{name: getattr(self, name)[index] for name in names})


def record(scenes: SceneBatch, moments: Sequence[Moment]) -> Episodes:
    """The episodes that passed through `moments`, the first of which is the current time."""
    driven = moments[1:]
    return Episodes(
        scenes=scenes,
        ego=torch.stack([moment.ego for moment in moments], dim=1),
        underway=torch.stack([moment.fault == 0 for moment in moments[:-1]], dim=1),
        off_road=torch.stack([moment.off_road for moment in driven], dim=1),
        time_to_collision=torch.stack([moment.time_to_collision for moment in driven], dim=1),
        collided=moments[-1].collided,
        fault=moments[-1].fault,
        ran_light=moments[-1].ran_light,
    )


@torch.no_grad()
def drive(
    environment: Environment, scenes: SceneBatch, planner: Planner, steps: int, replan_every: int = 1
) -> Episodes:
    """`steps` periods in closed loop: `planner` is asked every `replan_every` of them, and its controls are carried out
    until then.

    Raises `SceneError` when a plan is too short, not finite or not for all scenes.
    """
    moments = [environment.start(scenes)]
    for step in range(steps):
        if step % replan_every == 0:
            controls = planner(moments, scenes)
            _require_plan(controls, scenes, replan_every)
        moments.append(environment.step(scenes, moments[-1], controls[:, step % replan_every]))
    return record(scenes, moments)


@torch.no_grad()
def follow(simulator: Simulator, scenes: SceneBatch, plans: Tensor) -> Episodes:
    """The plans' states `(b, t, 4)` driven to their ends in open loop: exactly as planned, or, where the simulator has
    been given dynamics, as far as these carry out the controls that would lead a unicycle there. Raises `SceneError`
    when they are longer than the scenes' logs.
    """
    if simulator.dynamics is not None:
        controls = unicycle_controls(scenes.initial, plans, scenes.dt)
        return drive(simulator, scenes, lambda moments, batch: controls, plans.shape[1], plans.shape[1])
    moments = [simulator.start(scenes)]
    for step in range(plans.shape[1]):
        moments.append(simulator.place(scenes, moments[-1], plans[:, step], moments[-1].curvature))
    return record(scenes, moments)


def _require_plan(controls: Tensor, scenes: SceneBatch, periods: int) -> None:
    if controls.ndim != 3 or controls.shape[::2] != (len(scenes), 2) or controls.shape[1] < periods:
        raise SceneError(
            f"the planner gave controls of shape {tuple(controls.shape)}; give ({len(scenes)}, {periods} or more, 2)"
        )
    lost = (~controls.isfinite()).flatten(1).any(dim=1).nonzero().flatten().tolist()
    if lost:
        raise SceneError(f"scene {scenes.ids[lost[0]]}: the planner's controls hold NaN or infinity; it must decide")
