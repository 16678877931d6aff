"""Advantages of answers relative to the other answers to the same prompt.

Every estimator maps rewards `(n,)` and group indices `(n,)` int64 to advantages `(n,)`, float32 (float64 for float64
rewards). Groups may differ in size, but all rewards of a group must be in the same call. A group whose rewards are all
equal, or that has a single answer, carries no signal and gets zeros.
"""

from __future__ import annotations

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
