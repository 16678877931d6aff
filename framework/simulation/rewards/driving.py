"""Rewards of driving, computed from the episodes.

Penalties are -1 to 0, achievements 0 to 1; an answer that does not parse gets the worst value. Rules that a scene
cannot judge (no map, no limit, no light) cost nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor

from framework.recipe.component import component
from framework.recipe.ranges import Metres, Seconds, Weight
from framework.simulation import measures
from framework.simulation.rewards.rollouts import RolloutBatch


@component
class Imitation:
    """Closeness to the expert, as in Alpamayo-R1 (arXiv 2511.00088).

    -`scale` x ADE / `miss_m` below an ADE of `miss_m`, else -1; see `displacement`.

    Args:
        miss_m: the ADE (m) from which the plan is a miss.
        scale: the penalty just below `miss_m`.
    """

    def __init__(self, miss_m: Metres = 3.0, scale: Weight = 0.4) -> None:
        self.miss_m = miss_m
        self.scale = scale
        self.span = max(1.0, scale)

    def __call__(self, rollouts: RolloutBatch) -> Tensor:
        """See `Reward`."""
        ade = displacement(rollouts)
        value = torch.where(ade < self.miss_m, -self.scale * ade / self.miss_m, -torch.ones_like(ade))
        return rollouts.graded(value, -max(1.0, self.scale))


@component
class Alpamayo:
    """Alpamayo-R1's whole reward (arXiv 2511.00088).

    -`scale` x ADE / `miss_m` + `comfort` x (fraction of comfort bounds kept - 1) below an ADE of `miss_m`, else exactly
    -1, however comfortable.

    Args:
        miss_m: the ADE (m) from which the plan is a miss.
        scale: the penalty of distance just below `miss_m`.
        comfort: the penalty of breaking all comfort bounds.
    """

    def __init__(self, miss_m: Metres = 3.0, scale: Weight = 0.4, comfort: Weight = 0.1) -> None:
        self.imitation = Imitation(miss_m, scale)
        self.comfort = comfort
        self.span = max(1.0, scale + comfort)

    def __call__(self, rollouts: RolloutBatch) -> Tensor:
        """See `Reward`."""
        near = displacement(rollouts) < self.imitation.miss_m
        value = self.imitation(rollouts) + self.comfort * near * Comfort()(rollouts)
        return rollouts.graded(value, -max(1.0, self.imitation.scale + self.comfort))


def displacement(rollouts: RolloutBatch) -> Tensor:
    """ADE `(n,)` (m): the mean distance between planned and expert positions over the plan's horizon; 0 for an answer
    that does not parse."""
    expert = rollouts.episodes.scenes.expert[:, : rollouts.episodes.ego.shape[1] - 1]
    planned = [one if plan is None else plan.states for one, plan in zip(expert, rollouts.plans, strict=True)]
    states = torch.stack([torch.as_tensor(one).to(expert) for one in planned])
    return (states - expert)[..., :2].norm(dim=-1).mean(dim=-1)


@component
class Collision:
    """-1 for an at-fault collision with a road user, -0.5 with an object, else 0."""

    def __call__(self, rollouts: RolloutBatch) -> Tensor:
        """See `Reward`."""
        return rollouts.graded(measures.no_fault(rollouts.episodes) - 1, -1.0)


@component
class OffRoad:
    """-1 for leaving the drivable surface, else 0."""

    def __call__(self, rollouts: RolloutBatch) -> Tensor:
        """See `Reward`."""
        return rollouts.graded(measures.on_road(rollouts.episodes) - 1, -1.0)


@component
class TimeToCollision:
    """min(1, shortest time to collision / `horizon_s`) - 1.

    Args:
        horizon_s: the time to collision (s) from which the reward is 0.
    """

    def __init__(self, horizon_s: Seconds = 2.0) -> None:
        self.horizon_s = horizon_s

    def __call__(self, rollouts: RolloutBatch) -> Tensor:
        """See `Reward`."""
        fraction = measures.least_time_to_collision(rollouts.episodes) / self.horizon_s
        return rollouts.graded(fraction.clamp(max=1) - 1, -1.0)


@component
class Progress:
    """The advance along the route as a fraction of the expert's, 0 to 1."""

    def __call__(self, rollouts: RolloutBatch) -> Tensor:
        """See `Reward`."""
        return rollouts.graded(measures.progress(rollouts.episodes), 0.0)


@component
class Comfort:
    """The fraction of nuPlan's six comfort bounds kept, minus 1 (Alpamayo-R1's comfort - 1)."""

    def __call__(self, rollouts: RolloutBatch) -> Tensor:
        """See `Reward`."""
        within = measures.comforts(rollouts.episodes)
        return rollouts.graded(within.to(rollouts.episodes.ego.dtype).mean(dim=1) - 1, -1.0)


@component
class SpeedLimit:
    """nuPlan's speed-limit compliance minus 1: -1 far above the limit, 0 never above it."""

    def __call__(self, rollouts: RolloutBatch) -> Tensor:
        """See `Reward`."""
        return rollouts.graded(measures.speed_compliance(rollouts.episodes) - 1, -1.0)


@component
class RedLight:
    """-1 for crossing a closed stop line, else 0."""

    def __call__(self, rollouts: RolloutBatch) -> Tensor:
        """See `Reward`."""
        return rollouts.graded(measures.heeds_lights(rollouts.episodes) - 1, -1.0)


@component
class PlanningScore:
    """NAVSIM's PDM score, 0 to 1; see `measures.planning_score`."""

    def __call__(self, rollouts: RolloutBatch) -> Tensor:
        """See `Reward`."""
        return rollouts.graded(measures.planning_score(rollouts.episodes), 0.0)
