"""Advantages of answers over the other answers to their prompt.

Rewards `(n,)` and groups `(n,)` int64 in, advantages `(n,)` float32 (float64 for float64 rewards) out. A group's
rewards must be together, of whatever size it is: one whose rewards are all the same, or that has a single one, teaches
nothing and gets zeros.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from framework.objective.groups import group_statistics


class Advantages(Protocol):
    """How much better than its group each answer is."""

    def __call__(self, rewards: Tensor, groups: Tensor) -> Tensor:
        """Advantages `(n,)` of `rewards` `(n,)` by `groups` `(n,)`, numbered from 0."""
        ...


def mean_centered(rewards: Tensor, groups: Tensor) -> Tensor:
    """A = r - mean(r): Dr. GRPO (Liu et al. 2025, arXiv 2503.20783), which finds that dividing by the deviation favours
    prompts that are nearly always or nearly never answered well.
    """
    return _as(rewards, group_statistics(rewards, groups).deviation)


def group_relative(rewards: Tensor, groups: Tensor, epsilon: float, floor: float) -> Tensor:
    """A = (r - mean(r)) / (max(std(r), floor) + epsilon), std unbiased: GRPO (Shao et al. 2024, arXiv 2402.03300,
    section 4.1.2).

    Without the floor, rewards that differ by rounding alone get advantages as large as those of success and failure.
    """
    statistics = group_statistics(rewards, groups)
    return _as(rewards, statistics.deviation / (statistics.std.clamp(min=floor) + epsilon)[groups])


def leave_one_out(rewards: Tensor, groups: Tensor) -> Tensor:
    """A_i = r_i - mean of the others' r = n / (n - 1) (r_i - mean(r)) in a group of n: RLOO (Ahmadian et al. 2024,
    arXiv 2402.14740).
    """
    statistics = group_statistics(rewards, groups)
    return _as(rewards, statistics.deviation * (statistics.size / (statistics.size - 1).clamp(min=1))[groups])


def _as(rewards: Tensor, values: Tensor) -> Tensor:
    return values.to(torch.promote_types(rewards.dtype, torch.float32))


@dataclass(frozen=True)
class MeanCentered:
    """See `mean_centered`."""

    def __call__(self, rewards: Tensor, groups: Tensor) -> Tensor:
        """See `Advantages`."""
        return mean_centered(rewards, groups)


@dataclass(frozen=True)
class GroupRelative:
    """See `group_relative`. `epsilon` is 1e-6 in verl and NeMo-RL, 1e-4 in TRL; `floor` is in units of the reward."""

    epsilon: float = 1e-6
    floor: float = 1e-3

    def __post_init__(self) -> None:
        if self.epsilon < 0 or self.floor < 0 or self.epsilon + self.floor == 0:
            raise ValueError(f"advantages: epsilon {self.epsilon}, floor {self.floor}; give at least one above 0")

    def __call__(self, rewards: Tensor, groups: Tensor) -> Tensor:
        """See `Advantages`."""
        return group_relative(rewards, groups, self.epsilon, self.floor)


@dataclass(frozen=True)
class LeaveOneOut:
    """See `leave_one_out`."""

    def __call__(self, rewards: Tensor, groups: Tensor) -> Tensor:
        """See `Advantages`."""
        return leave_one_out(rewards, groups)
