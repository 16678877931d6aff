"""Advantages of answers relative to the other answers to the same prompt.

Every estimator maps rewards `(n,)` and group indices `(n,)` int64 to advantages `(n,)`, float32 (float64 for float64
rewards). Groups may differ in size, but all rewards of a group must be in the same call. A group whose rewards are all
equal, or that has a single answer, carries no signal and gets zeros.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from framework.objective.groups import group_statistics
from framework.recipe.component import component
from framework.recipe.ranges import Deviation


class Advantages(Protocol):
    """An advantage estimator: how much better each answer is than its group."""

    def __call__(self, rewards: Tensor, groups: Tensor) -> Tensor:
        """Advantages `(n,)` of `rewards` `(n,)`; `groups` `(n,)` int64 numbers the groups from 0."""
        ...


def mean_centered(rewards: Tensor, groups: Tensor) -> Tensor:
    """Advantages of Dr. GRPO (Liu et al. 2025, arXiv 2503.20783):

        A_i = r_i - mean(r)

    The paper finds that division by the standard deviation favours prompts that are nearly always or nearly never
    answered well.
    """
    return _as_float(rewards, group_statistics(rewards, groups).deviation)


def group_relative(rewards: Tensor, groups: Tensor, epsilon: float, floor: float) -> Tensor:
    """Advantages of GRPO (Shao et al. 2024, arXiv 2402.03300, section 4.1.2), with the unbiased standard deviation:

        A_i = (r_i - mean(r)) / (max(std(r), floor) + epsilon)

    Without the floor, rewards that differ only by rounding get advantages as large as those of success and failure.
    """
    statistics = group_statistics(rewards, groups)
    return _as_float(rewards, statistics.deviation / (statistics.std.clamp(min=floor) + epsilon)[groups])


def leave_one_out(rewards: Tensor, groups: Tensor) -> Tensor:
    """Advantages of RLOO (Ahmadian et al. 2024, arXiv 2402.14740), in a group of n answers:

    A_i = r_i - mean of r_j over j != i
        = n / (n - 1) (r_i - mean(r))
    """
    statistics = group_statistics(rewards, groups)
    return _as_float(rewards, statistics.deviation * (statistics.size / (statistics.size - 1).clamp(min=1))[groups])


def group_decoupled(
    parts: Tensor, weights: Tensor, spans: Tensor, groups: Tensor, epsilon: float, floor: float
) -> Tensor:
    """Advantages of GDPO (Liu et al. 2026, arXiv 2601.05242) before `whiten`, of `k` parts of the reward:

        A_i = sum_k w_k (r_ik - mean(r_k)) / (max(std(r_k), floor span_k) + epsilon span_k)

    with the unbiased standard deviation in the group. Each part is normalised on its own, so that one of a large scale
    does not drown the others. The floor keeps a part that hardly varies from weighing as much as a collision.

    Args:
        parts: Values `(n, k)`, unweighted.
        weights: Weight of each part, `(k,)`.
        spans: Distance between the worst and the best value of each part, `(k,)`.
        groups: Group of each answer, `(n,)` int64, numbered from 0.
        epsilon: Added to the standard deviation, as a share of the span.
        floor: Smallest standard deviation to divide by, as a share of the span.
    """
    total = parts.new_zeros(len(parts), dtype=torch.float64)
    for values, weight, span in zip(parts.unbind(dim=1), weights.tolist(), spans.tolist(), strict=True):
        statistics = group_statistics(values, groups)
        total += weight * statistics.deviation / (statistics.std.clamp(min=floor * span) + epsilon * span)[groups]
    return _as_float(parts, total)


def whiten(advantages: Tensor, moments: Tensor, epsilon: float) -> Tensor:
    """Advantages `(n,)` minus the batch's mean, over its unbiased standard deviation; `moments` `(3,)` float64 are the
    `batch_moments` of the whole batch, added up over its ranks. Zeros where the batch does not vary.
    """
    count, total, squares = moments.tolist()
    mean = total / max(count, 1.0)
    variance = max(squares - count * mean**2, 0.0) / max(count - 1.0, 1.0)
    return _as_float(advantages, (advantages.double() - mean) / (math.sqrt(variance) + epsilon))


def batch_moments(advantages: Tensor) -> Tensor:
    """Number, sum and sum of squares of advantages `(n,)`: `(3,)` float64."""
    values = advantages.double()
    return torch.stack([values.new_tensor(float(len(values))), values.sum(), (values**2).sum()])


def _as_float(rewards: Tensor, values: Tensor) -> Tensor:
    return values.to(torch.promote_types(rewards.dtype, torch.float32))


@component
@dataclass(frozen=True)
class MeanCentered:
    """Centres rewards on their group's mean; see `mean_centered`."""

    def __call__(self, rewards: Tensor, groups: Tensor) -> Tensor:
        """See `Advantages`."""
        return mean_centered(rewards, groups)


@component
@dataclass(frozen=True)
class GroupRelative:
    """Centres rewards on their group's mean and divides by its standard deviation; see `group_relative`."""

    epsilon: Deviation = 1e-6
    """Added to the standard deviation, in units of the reward. verl and NeMo-RL use 1e-6, TRL uses 1e-4."""
    floor: Deviation = 1e-3
    """Smallest standard deviation to divide by, in units of the reward."""

    def __post_init__(self) -> None:
        if self.epsilon < 0 or self.floor < 0 or self.epsilon + self.floor == 0:
            raise ValueError(f"advantages: epsilon {self.epsilon}, floor {self.floor}; give at least one above 0")

    def __call__(self, rewards: Tensor, groups: Tensor) -> Tensor:
        """See `Advantages`."""
        return group_relative(rewards, groups, self.epsilon, self.floor)


@component
@dataclass(frozen=True)
class LeaveOneOut:
    """Compares each reward with the mean of the group's other rewards; see `leave_one_out`."""

    def __call__(self, rewards: Tensor, groups: Tensor) -> Tensor:
        """See `Advantages`."""
        return leave_one_out(rewards, groups)


@component
@dataclass(frozen=True)
class GroupDecoupled:
    """Normalises each part of the reward in its group, adds them by weight, and whitens the sums over the step; see
    `group_decoupled` and `whiten`.

    It is no `Advantages`, since it takes the parts of the reward and the whole step's answers, of all ranks.
    """

    epsilon: Deviation = 1e-6
    """Added to standard deviations, as a share of the part's span."""
    floor: Deviation = 1e-2
    """Smallest standard deviation to divide by, as a share of the part's span."""

    def __post_init__(self) -> None:
        if self.epsilon <= 0 or self.floor < 0:
            raise ValueError(f"advantages: epsilon {self.epsilon}, floor {self.floor}; give above 0, and 0 or more")

    def __call__(self, parts: Tensor, weights: Tensor, spans: Tensor, groups: Tensor) -> Tensor:
        """Advantages `(n,)` before whitening; for the arguments see `group_decoupled`."""
        return group_decoupled(parts, weights, spans, groups, self.epsilon, self.floor)

    def whiten(self, advantages: Tensor, moments: Tensor) -> Tensor:
        """See `whiten`."""
        return whiten(advantages, moments, self.epsilon)
