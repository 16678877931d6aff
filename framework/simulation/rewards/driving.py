"""Rewards for how the ego would drive, from the episodes. Penalties are -1 to 0, achievements 0 to 1; an answer that
spells no plan gets the worst. Where a scene has no map, limit or light, nothing is lost.
"""

from __future__ import annotations

import torch
from torch import Tensor

from framework.simulation import measures
from framework.simulation.rewards.rollouts import RolloutBatch


class Imitation:
    """Closeness to the expert, in the shape of Alpamayo-R1's (arXiv 2511.00088): -`scale` x ADE / `miss_m` below an ADE
    of `miss_m` metres, -1 from there on. For ADE see `displacement`.
    """

    def __init__(self, miss_m: float = 3.0, scale: float = 0.4) -> None:
        self.miss_m = miss_m
        self.scale = scale

    def __call__(self, rollouts: RolloutBatch) -> Tensor:
        """See `Reward`."""
        ade = displacement(rollouts)
        value = torch.where(ade < self.miss_m, -self.scale * ade / self.miss_m, -torch.ones_like(ade))
        return rollouts.graded(value, -1.0)


class Alpamayo:
    """Alpamayo-R1's whole reward (arXiv 2511.00088): -`scale` x ADE / `miss_m` + `comfort` x (the share of comfort
    bounds kept - 1) below an ADE of `miss_m` metres, and exactly -1 from there on, however comfortable.
    """

    def __init__(self, miss_m: float = 3.0, scale: float = 0.4, comfort: float = 0.1) -> None:
        self.imitation = Imitation(miss_m, scale)
        self.comfort = comfort

    def __call__(self, rollouts: RolloutBatch) -> Tensor:
        """See `Reward`."""
        near = displacement(rollouts) < self.imitation.miss_m
        value = self.imitation(rollouts) + self.comfort * near * Comfort()(rollouts)
        return rollouts.graded(value, -1.0)


def displacement(rollouts: RolloutBatch) -> Tensor:
    """ADE `(n,)`: the mean distance (m) between the planned and the expert's positions over the plan's horizon; 0 where
    no plan is spelled."""
    expert = rollouts.episodes.scenes.expert[:, : rollouts.episodes.ego.shape[1] - 1]
    planned = [one if plan is None else plan.states for one, plan in zip(expert, rollouts.plans, strict=True)]
    states = torch.stack([torch.as_tensor(one).to(expert) for one in planned])
    return (states - expert)[..., :2].norm(dim=-1).mean(dim=-1)


class Collision:
    """-1 where the ego collides with a road user by its own fault, -0.5 with a thing, else 0."""

    def __call__(self, rollouts: RolloutBatch) -> Tensor:
        """See `Reward`."""
        return rollouts.graded(measures.no_fault(rollouts.episodes) - 1, -1.0)


class OffRoad:
    """-1 where the body leaves the drivable surface, else 0."""

    def __call__(self, rollouts: RolloutBatch) -> Tensor:
        """See `Reward`."""
        return rollouts.graded(measures.on_road(rollouts.episodes) - 1, -1.0)


class TimeToCollision:
    """The shortest time to collision as a share of `horizon_s`, at most 1, less 1: 0 where there is always time."""

    def __init__(self, horizon_s: float = 2.0) -> None:
        self.horizon_s = horizon_s

    def __call__(self, rollouts: RolloutBatch) -> Tensor:
        """See `Reward`."""
        share = measures.least_time_to_collision(rollouts.episodes) / self.horizon_s
        return rollouts.graded(share.clamp(max=1) - 1, -1.0)


class Progress:
    """The way made along the route as a share of the expert's, 0 to 1."""

    def __call__(self, rollouts: RolloutBatch) -> Tensor:
        """See `Reward`."""
        return rollouts.graded(measures.progress(rollouts.episodes), 0.0)


class Comfort:
    """The share of nuPlan's six comfort bounds that are kept, less 1: 0 where all are (Alpamayo-R1's comfort - 1)."""

    def __call__(self, rollouts: RolloutBatch) -> Tensor:
        """See `Reward`."""
        kept = measures.comforts(rollouts.episodes)
        return rollouts.graded(kept.to(rollouts.episodes.ego.dtype).mean(dim=1) - 1, -1.0)


class SpeedLimit:
    """-1 (far above the limit) to 0 (never above it): nuPlan's compliance less 1."""

    def __call__(self, rollouts: RolloutBatch) -> Tensor:
        """See `Reward`."""
        return rollouts.graded(measures.speed_compliance(rollouts.episodes) - 1, -1.0)


class RedLight:
    """-1 where the ego's front crosses a stop line that is closed, else 0."""

    def __call__(self, rollouts: RolloutBatch) -> Tensor:
        """See `Reward`."""
        return rollouts.graded(measures.heeds_lights(rollouts.episodes) - 1, -1.0)


class PlanningScore:
    """NAVSIM's PDM score of the plan, 0 to 1: see `measures.planning_score`."""

    def __call__(self, rollouts: RolloutBatch) -> Tensor:
        """See `Reward`."""
        return rollouts.graded(measures.planning_score(rollouts.episodes), 0.0)
