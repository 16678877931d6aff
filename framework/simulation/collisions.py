"""Collisions of the ego within a period, in continuous time, and whose fault they are."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from framework.scene.contact import Motion, contact_normal, even_motion, first_contact, overlaps
from framework.simulation.geometry import corners, direction, inside, project_onto
from framework.simulation.scenes import SceneBatch

STANDSTILL_SPEED = 0.05
"""Slower than this (m/s) counts as standing (nuPlan)."""
BEHIND_COSINE = math.cos(math.radians(150.0))
"""Cosine of the bearing beyond which an agent is behind the ego (nuPlan)."""
LANE_HALF_WIDTH_M = 1.9
"""The body is in its lane while it reaches no farther (m) from the route."""
OBJECT_FAULT = 0.5
"""The fault of hitting an object; hitting a road user counts 1 (NAVSIM)."""
BUMPER_M = 0.005
"""The bumper reaches so far (m) around the body's front edge: rounding must not decide whether it is touched."""
LEAST_SHARE = 0.1
"""Who brings less than this share of the closing speed, across the faces that touch, has not run into the other."""


class Collisions(NamedTuple):
    """What the ego meets in each of `t` periods."""

    touched: Tensor
    """`(b, t, n)` bool: the agents that have touched the ego's body by each period's end."""
    collided: Tensor
    """`(b, t)` bool: whether the ego has met an agent by then."""
    fault: Tensor
    """`(b, t)`: 0, `OBJECT_FAULT` or 1, the worst of these collisions that the ego caused."""


def collisions(
    scenes: SceneBatch, ego: Motion, boxes: Tensor, present: Tensor, touched: Tensor, ended: Tensor
) -> Collisions:
    """The collisions of the ego's bodies `(b, t)` with agents in continuous time.

    Each collision is judged once, at its start. Nothing counts that comes after the first collision which the ego
    causes. An agent that was not there at a period's start counts at its end alone.

    Args:
        scenes: the batch.
        ego: the ego's bodies in each period.
        boxes: `(b, t + 1, n, 5)`: the agents.
        present: `(b, t + 1, n)` bool: whether they are there.
        touched: `(b, n)` bool: the agents that have touched the ego's body before.
        ended: `(b,)` bool: the episodes in which nothing counts any more.
    """
    there = present[:, :-1] & present[:, 1:]
    bodies = Motion(ego.before[:, :, None], ego.after[:, :, None], ego.slowing[:, :, None])
    others = even_motion(boxes[:, :-1], boxes[:, 1:])
    contact = first_contact(bodies, even_motion(torch.where(there[..., None], others.before, torch.nan), others.after))
    appears = present[:, 1:] & ~present[:, :-1]
    if appears.any():
        contact = torch.where(appears & overlaps(bodies.after, others.after), torch.ones_like(contact), contact)
    meets = contact.isfinite()
    count = meets.cumsum(dim=1)
    fresh = meets & (count == 1) & ~(touched | ended[:, None])[:, None]
    collided, fault = torch.zeros_like(ego.slowing, dtype=torch.bool), torch.zeros_like(ego.slowing)
    row, period, agent = fresh.nonzero(as_tuple=True)
    if len(row):
        time = contact[fresh]
        bodies, others = (motion.select(fresh.shape, fresh) for motion in (bodies, others))
        weight = _fault(scenes, row, agent, bodies, others, time)
        moment = torch.where(weight > 0, period + time, torch.inf)
        end = torch.full_like(scenes.speed_limit, torch.inf).scatter_reduce(0, row, moment, "amin")
        counts = period + time <= end[row]
        row, period, weight = row[counts], period[counts], weight[counts]
        collided[row, period] = True
        flat = row * fault.shape[1] + period
        fault = fault.flatten().scatter_reduce(0, flat, weight, "amax").view_as(fault)
    return Collisions(touched[:, None] | (count > 0), collided.cumsum(dim=1) > 0, fault.cummax(dim=1).values)


def are_behind(poses: Tensor, body: Tensor) -> Tensor:
    """Which `poses` `(..., 2+)` are behind `body` `(..., 5)`: within 30 degrees of straight back."""
    relative = poses[..., :2] - body[..., :2]
    ahead = (relative * direction(body[..., 2])).sum(dim=-1)
    return ahead < BEHIND_COSINE * relative.norm(dim=-1)


def _fault(scenes: SceneBatch, row: Tensor, agent: Tensor, ego: Motion, other: Motion, time: Tensor) -> Tensor:
    """The ego's fault `(q,)` in collisions with `agent` `(q,)` of scene `row` `(q,)` at `time` `(q,)` of the period."""
    body, box = ego.at(time), other.at(time)
    way, others_way = ego.velocity(time), other.velocity(time)
    speed = way.norm(dim=-1) * scenes.rate_hz
    stood = others_way.norm(dim=-1) * scenes.rate_hz <= STANDSTILL_SPEED
    bumper = body.clone()
    bumper[:, :2] += direction(body[:, 2]) * body[:, 3:4] / 2
    bumper[:, 3] = 0.0
    bumper[:, 3:] += 2 * BUMPER_M
    front = overlaps(bumper, box)
    across = contact_normal(body, box)
    own, others = ((motion * across).sum(dim=-1) for motion in (way, others_way))
    front &= (own > 0) & (own >= LEAST_SHARE * (own - others))
    edge = corners(body)
    off_road = scenes.mapped[row] & ~inside(edge, scenes.surface[row]).all(dim=-1)
    _, offset, _ = project_onto(edge, scenes.route[row][:, None])
    strayed = off_road | (offset.abs() > LANE_HALF_WIDTH_M).any(dim=-1)
    backs_up = (way * direction(body[:, 2])).sum(dim=-1) < 0
    excused = are_behind(box, body) & ~backs_up
    blamed = (speed > STANDSTILL_SPEED) & (stood | (~excused & (front | strayed | backs_up)))
    weight = torch.where(scenes.alive[row, agent], 1.0, OBJECT_FAULT).to(time)
    return torch.where(blamed, weight, torch.zeros_like(weight))
