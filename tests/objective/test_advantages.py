"""Advantages against vectors by hand, numpy in float64, and rewards that invite mistakes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from framework.objective.advantages import (
    Advantages,
    GroupRelative,
    LeaveOneOut,
    MeanCentered,
    group_relative,
    leave_one_out,
    mean_centered,
)
from framework.objective.groups import group_statistics, sum_by_group

EVERY = [MeanCentered(), GroupRelative(), LeaveOneOut()]


def by_hand(rewards: Tensor, groups: Tensor, name: str, epsilon: float, floor: float) -> np.ndarray:
    """Group by group, in float64, by numpy's own mean and std."""
    values, found = rewards.double().numpy(), np.zeros(len(rewards))
    for group in np.unique(groups):
        (members,) = np.nonzero(groups.numpy() == group)
        here = values[members]
        for index in members:
            if name == "leave one out":
                others = values[[other for other in members if other != index]]
                found[index] = values[index] - others.mean() if len(others) else 0.0
            else:
                found[index] = values[index] - here.mean()
                if name == "group relative" and len(here) > 1:
                    found[index] /= max(here.std(ddof=1), floor) + epsilon
    return found


def test_a_group_of_four_by_hand() -> None:
    rewards, groups = torch.tensor([1.0, 0.0, 0.0, 3.0]), torch.zeros(4, dtype=torch.int64)
    assert mean_centered(rewards, groups).tolist() == [0.0, -1.0, -1.0, 2.0]
    # squared deviations 0, 1, 1, 4: the unbiased variance is 6 / 3
    std = math.sqrt(2.0)
    expected = [0.0, -1 / std, -1 / std, 2 / std]
    assert group_relative(rewards, groups, 0.0, 1e-3).tolist() == pytest.approx(expected, rel=1e-6)
    # the others of the first: 0, 0, 3; of the second and third: 1, 0, 3; of the last: 1, 0, 0
    assert leave_one_out(rewards, groups).tolist() == pytest.approx([0.0, -4 / 3, -4 / 3, 8 / 3], rel=1e-6)


@pytest.mark.parametrize("name", ["mean centred", "group relative", "leave one out"])
def test_groups_of_any_size_and_order_as_numpy_has_them(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    groups = torch.repeat_interleave(torch.arange(6), torch.tensor([2, 7, 1, 4, 12, 3]))
    groups = groups[torch.randperm(len(groups), generator=generator)]
    rewards = torch.randn(len(groups), generator=generator) * 3 + 5
    made: dict[str, Advantages] = {
        "mean centred": MeanCentered(),
        "group relative": GroupRelative(1e-4, 0.5),
        "leave one out": LeaveOneOut(),
    }
    expected = torch.from_numpy(by_hand(rewards, groups, name, 1e-4, 0.5)).float()
    torch.testing.assert_close(made[name](rewards, groups), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("advantages", EVERY)
@pytest.mark.parametrize("reward", [0.1, 1 / 3, -1e6, 1e-30])
def test_equal_rewards_teach_exactly_nothing(advantages: Advantages, reward: float) -> None:
    found = advantages(torch.full((7,), reward), torch.tensor([0, 0, 0, 1, 1, 1, 1]))
    assert found.tolist() == [0.0] * 7


@pytest.mark.parametrize("advantages", EVERY)
def test_a_single_answer_and_no_answer_teach_nothing(advantages: Advantages) -> None:
    assert advantages(torch.tensor([5.0]), torch.tensor([0])).tolist() == [0.0]
    assert advantages(torch.zeros(0), torch.zeros(0, dtype=torch.int64)).shape == (0,)


@pytest.mark.parametrize("advantages", EVERY)
def test_advantages_of_a_group_add_up_to_nothing(advantages: Advantages) -> None:
    rewards, groups = torch.tensor([1.0, 4.0, -2.0, 7.0, 7.5]), torch.tensor([0, 0, 0, 1, 1])
    found = advantages(rewards, groups)
    assert float(found[:3].sum()) == pytest.approx(0.0, abs=1e-6)
    assert float(found[3:].sum()) == pytest.approx(0.0, abs=1e-6)


def test_rewards_that_differ_by_rounding_alone_stay_small() -> None:
    rewards, groups = torch.tensor([0.1, 0.1 + 1e-8, 0.1, 0.1 - 2e-8]), torch.zeros(4, dtype=torch.int64)
    assert group_relative(rewards, groups, 1e-6, 1e-3).abs().max() < 1e-4
    assert group_relative(rewards, groups, 0.0, 1e-12).abs().max() > 0.5  # what the floor is for


def test_close_rewards_far_from_zero_keep_their_spread() -> None:
    """A variance from sums of squares in float32 would be 0 or noise."""
    rewards, groups = torch.tensor([4096.0, 4096.0 + 2**-10, 4096.0, 4096.0 + 2**-10]), torch.zeros(4).long()
    statistics = group_statistics(rewards, groups)
    assert float(statistics.std) == pytest.approx(2**-11 * math.sqrt(4 / 3), rel=1e-9)
    assert group_relative(rewards, groups, 0.0, 1e-9).abs().tolist() == pytest.approx([math.sqrt(3) / 2] * 4)


def test_large_and_small_rewards_neither_overflow_nor_vanish() -> None:
    rewards, groups = torch.tensor([-3e38, 3e38, -1e-20, 1e-20]), torch.tensor([0, 0, 1, 1])
    found = group_relative(rewards, groups, 0.0, 1e-30)
    assert found.tolist() == pytest.approx([-math.sqrt(0.5), math.sqrt(0.5)] * 2)


def test_half_precision_rewards_give_single_precision_advantages() -> None:
    rewards, groups = torch.tensor([1.0, 2.0, 4.0]), torch.zeros(3, dtype=torch.int64)
    for dtype, expected in ((torch.bfloat16, torch.float32), (torch.float32, torch.float32), (torch.float64,) * 2):
        found = mean_centered(rewards.to(dtype), groups)
        assert found.dtype == expected
        assert found.tolist() == pytest.approx([-4 / 3, -1 / 3, 5 / 3], rel=1e-6)


@pytest.mark.parametrize("advantages", EVERY)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_rewards_that_are_not_finite_are_refused(advantages: Advantages, bad: float) -> None:
    with pytest.raises(ValueError, match="1 of 3 are not finite"):
        advantages(torch.tensor([1.0, bad, 2.0]), torch.zeros(3, dtype=torch.int64))


@pytest.mark.parametrize(("epsilon", "floor"), [(-1e-6, 1e-3), (1e-6, -1.0), (0.0, 0.0)])
def test_a_division_by_nothing_is_refused(epsilon: float, floor: float) -> None:
    with pytest.raises(ValueError, match=f"epsilon {epsilon}, floor {floor}"):
        GroupRelative(epsilon, floor)


def test_statistics_by_hand() -> None:
    found = group_statistics(torch.tensor([1.0, 5.0, 2.0, 3.0]), torch.tensor([0, 3, 0, 0]))
    assert found.mean.tolist() == [2.0, 0.0, 0.0, 5.0]
    assert found.std.tolist() == [1.0, 0.0, 0.0, 0.0]
    assert found.size.tolist() == [3, 0, 0, 1]
    assert found.deviation.tolist() == [-1.0, 0.0, 0.0, 1.0]


def test_sums_by_index() -> None:
    values = torch.tensor([1.0, 2.0, 4.0, 8.0])
    found = sum_by_group(values, torch.tensor([2, 0, 2, 0]), 4)
    assert found.dtype == torch.float64
    assert found.tolist() == [10.0, 0.0, 5.0, 0.0]
    assert sum_by_group(torch.zeros(0), torch.zeros(0, dtype=torch.int64), 2).tolist() == [0.0, 0.0]
