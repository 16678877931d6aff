"""What is said of the ego in each period: whom it meets and whether it is its fault, road departures, times to
collision, closed stop lines."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from framework.scene.contact import approach, slowing_motion
from framework.scene.kinematics import Vehicle, ego_box
from framework.simulation.collisions import are_behind, collisions
from framework.simulation.geometry import corners, crossing, direction, inside
from framework.simulation.scenes import SceneBatch
from framework.simulation.traffic import Agents


class Assessment(NamedTuple):
    """`b` egos in `t` periods; see the fields of `Moment`."""

    touched: Tensor
    """`(b, t, n)` bool."""
    collided: Tensor
    """`(b, t)` bool."""
    fault: Tensor
    """`(b, t)`."""
    off_road: Tensor
    """`(b, t)` bool: at the period's end, or on the way there."""
    time_to_collision: Tensor
    """`(b, t)` (s)."""
    ran_light: Tensor
    """`(b, t)` bool."""


def assess(
    scenes: SceneBatch, vehicle: Vehicle, ego: Tensor, agents: Agents, step: int, touched: Tensor, ended: Tensor
) -> Assessment:
    """Assess `t` periods from `step` on.

    Args:
        scenes: the batch.
        vehicle: the ego's body.
        ego: `(b, t + 1, 4)`: the ego's states.
        agents: the agents; its tensors are `(b, t + 1, n, ...)`.
        step: periods from the current time to the first state.
        touched: `(b, n)` bool: agents that no longer count.
        ended: `(b,)` bool: episodes in which collisions no longer count.
    """
    bodies = ego_box(ego, vehicle)
    boxes = torch.cat([agents.poses, scenes.sizes[:, None].expand(-1, ego.shape[1], -1, -1)], dim=-1)
    speeds = torch.stack([ego[:, :-1, 3], ego[:, 1:, 3]], dim=-1)
    motion = slowing_motion(bodies[:, :-1], bodies[:, 1:], speeds)
    met = collisions(scenes, motion, boxes, agents.present, touched, ended)
    off_road = is_off_road(scenes, bodies)
    _, time = encounters(boxes[:, 1:], agents.present[:, 1:], agents.velocities[:, 1:], bodies[:, 1:], ego[:, 1:, 3])
    return Assessment(
        *met,
        off_road=off_road[:, 1:] | (_crosses_boundary(scenes, bodies) & ~off_road[:, :-1]),
        time_to_collision=torch.where(met.touched, torch.inf, time).amin(dim=-1),
        ran_light=_runs_light(scenes, bodies, step).cumsum(dim=1) > 0,
    )


def encounters(
    boxes: Tensor, present: Tensor, velocities: Tensor, body: Tensor, speed: Tensor
) -> tuple[Tensor, Tensor]:
    """The agents that the ego's `body` `(b, t, 5)` overlaps `(b, t, n)`, bool, and the times to collision `(b, t, n)`,
    infinite for agents behind."""
    relative = velocities - (speed[..., None] * direction(body[..., 2]))[:, :, None]
    overlap, time = approach(body[:, :, None], boxes, relative)
    counts = present & ~are_behind(boxes, body[:, :, None])
    return overlap & present, torch.where(counts, time, torch.inf)


def is_off_road(scenes: SceneBatch, body: Tensor) -> Tensor:
    """Whether `(b, t)` any corner of the body `(b, t, 5)` is off the drivable surface; False where there is no map."""
    on = inside(corners(body).flatten(1, 2), scenes.surface)
    return scenes.mapped[:, None] & ~on.unflatten(1, (-1, 4)).all(dim=-1)


def _crosses_boundary(scenes: SceneBatch, bodies: Tensor) -> Tensor:
    """Whether `(b, t)` a corner crosses the boundary of the drivable surface on its straight path between two bodies of
    `(b, t + 1, 5)`: a strip that is driven over between two samples counts wherever the samples lie.
    """
    ends = corners(bodies)
    paths = torch.cat([ends[:, :-1], ends[:, 1:]], dim=-1)
    points = paths.unflatten(-1, (2, 2)).flatten(2, 3)
    low, high = points.amin(dim=2)[:, :, None], points.amax(dim=2)[:, :, None]
    starts, stops = scenes.surface[:, None, :, :2], scenes.surface[:, None, :, 2:]
    near = ((torch.minimum(starts, stops) <= high) & (torch.maximum(starts, stops) >= low)).all(dim=-1)
    row, period, edge = near.nonzero(as_tuple=True)
    fraction, _ = crossing(paths[row, period], scenes.surface[row, edge][:, None])
    crosses = torch.zeros_like(near[..., 0])
    met = fraction.isfinite().any(dim=-1)
    crosses[row[met], period[met]] = True
    return crosses


def _runs_light(scenes: SceneBatch, bodies: Tensor, step: int) -> Tensor:
    """Whether `(b, t)` the middle of the front crosses a closed stop line on the straight path between two bodies of
    `(b, t + 1, 5)`."""
    front = bodies[..., :2] + direction(bodies[..., 2]) * bodies[..., 3:4] / 2
    path, lights = torch.cat([front[:, :-1], front[:, 1:]], dim=-1), scenes.red_lights[:, None]
    fraction, _ = crossing(path[:, :, None], lights[..., :4])
    time = (step + torch.arange(path.shape[1], device=path.device)[:, None] + fraction) * scenes.dt
    return ((time >= lights[..., 4]) & (time < lights[..., 5])).any(dim=-1)
