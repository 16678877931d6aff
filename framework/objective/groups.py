"""Sums and statistics by group: of the answers to one prompt, or of the tokens of one answer."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


def sum_by_group(values: Tensor, index: Tensor, count: int) -> Tensor:
    """`values` `(n,)` added up by `index` `(n,)` int64 in [0, `count`): `(count,)` float64.

    A matrix product adds in the same order on every run; `index_add_` on a GPU does not.
    """
    members = torch.arange(count, device=index.device)[:, None] == index
    return members.double() @ values.double()


class GroupStatistics(NamedTuple):
    """Of each of `g` groups: `mean`, `std` (unbiased, 0 for a single reward) and `size`, `(g,)`; and `deviation`
    `(n,)`, each reward less its group's mean, exactly 0 where all rewards of a group are the same. A group without
    rewards has zeros.
    """

    mean: Tensor
    std: Tensor
    size: Tensor
    deviation: Tensor


def group_statistics(rewards: Tensor, groups: Tensor) -> GroupStatistics:
    """Statistics of `rewards` `(n,)` by `groups` `(n,)` int64, numbered from 0; groups may differ in size.

    In float64 and two passes, on rewards less their group's least: a variance from one pass over float32 rewards is
    noise where they lie close together. Raises `ValueError` for rewards that are not finite.
    """
    if not (finite := torch.isfinite(rewards)).all():
        raise ValueError(
            f"rewards: {int((~finite).sum())} of {len(rewards)} are not finite; drop an answer that cannot be judged"
        )
    count = int(groups.max()) + 1 if len(groups) else 0
    size = torch.bincount(groups, minlength=count)
    least = rewards.double().new_zeros(count).scatter_reduce(0, groups, rewards.double(), "amin", include_self=False)
    above = rewards.double() - least[groups]
    mean = sum_by_group(above, groups, count) / size.clamp(min=1)
    deviation = above - mean[groups]
    variance = sum_by_group(deviation**2, groups, count) / (size - 1).clamp(min=1)
    return GroupStatistics(least + mean, variance.sqrt(), size, deviation)
