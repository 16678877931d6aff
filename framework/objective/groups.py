"""Sums and statistics by group: over the answers to one prompt, or over the tokens of one answer."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


def sum_by_group(values: Tensor, index: Tensor, count: int) -> Tensor:
    """Sum `values` `(n,)` by group `index` `(n,)` int64 in [0, `count`): `(count,)` float64.

    A matrix product adds in the same order on every run; `index_add_` on a GPU does not.
    """
    members = torch.arange(count, device=index.device)[:, None] == index
    return members.double() @ values.double()


def group_sizes(index: Tensor, count: int) -> Tensor:
    """Members of each group `index` `(n,)` int64 in [0, `count`): `(count,)` int64. On a GPU, `bincount` would make the
    host wait.
    """
    return torch.zeros(count, dtype=torch.int64, device=index.device).index_add_(0, index, torch.ones_like(index))


class GroupStatistics(NamedTuple):
    """Statistics of `n` rewards in `g` groups, float64; zeros for a group without rewards."""

    mean: Tensor
    """Mean reward of each group, `(g,)`."""
    std: Tensor
    """Unbiased standard deviation of each group, `(g,)`; 0 for a single reward."""
    size: Tensor
    """Number of rewards in each group, `(g,)` int64."""
    deviation: Tensor
    """Each reward minus its group's mean, `(n,)`; exactly 0 where all rewards of a group are equal."""


def group_statistics(rewards: Tensor, groups: Tensor) -> GroupStatistics:
    """Statistics of `rewards` `(n,)` by `groups` `(n,)` int64, numbered from 0; groups may differ in size.

    They are computed in float64 and in two passes, on rewards minus their group's minimum: the variance of one pass
    over float32 rewards is noise where rewards lie close together. Raises `ValueError` for rewards that are not finite.
    """
    if not (finite := torch.isfinite(rewards)).all():
        raise ValueError(
            f"rewards: {int((~finite).sum())} of {len(rewards)} are not finite; drop an answer that cannot be judged"
        )
    count = int(groups.max()) + 1 if len(groups) else 0
    size = torch.bincount(groups, minlength=count)
    minimum = rewards.double().new_zeros(count).scatter_reduce(0, groups, rewards.double(), "amin", include_self=False)
    above = rewards.double() - minimum[groups]
    mean = sum_by_group(above, groups, count) / size.clamp(min=1)
    deviation = above - mean[groups]
    variance = sum_by_group(deviation**2, groups, count) / (size - 1).clamp(min=1)
    return GroupStatistics(minimum + mean, variance.sqrt(), size, deviation)
