"""Which groups a step keeps: by spread, not by mean alone."""

from __future__ import annotations

import pytest
import torch

from framework.objective.group_filter import GroupFilter

GROUPS = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 3, 4, 4, 4, 4])
REWARDS = torch.tensor([1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.5, 0.3, 0.3, 0.3, 0.3])
"""All solved, none solved, one of two, a single answer, all the same in between."""


SUCCESS = torch.tensor([1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 0.0, 1.0, 0.0, 1.0])


def test_only_a_group_that_differs_is_kept() -> None:
    assert GroupFilter()(REWARDS, GROUPS, SUCCESS).tolist() == [False, False, True, False, False]


@pytest.mark.fault("groups that all succeed, or all fail")
def test_groups_that_succeed_or_fail_altogether_are_dropped_however_their_rewards_vary() -> None:
    rewards, groups = torch.arange(9.0), torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 2])
    success = torch.tensor([1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 1.0])
    assert GroupFilter()(rewards, groups, success).tolist() == [False, False, True]
    assert GroupFilter()(rewards, groups, None).tolist() == [True] * 3, "nobody can tell"


def test_success_within_bounds_does_not_help_a_group_without_spread() -> None:
    kept = GroupFilter(success_low=0.1, success_high=0.9)(REWARDS, GROUPS, SUCCESS)
    assert kept.tolist() == [False, False, True, False, False]


@pytest.mark.parametrize(
    ("low", "high", "kept"), [(0.5, None, True), (0.6, None, False), (None, 0.5, True), (None, 0.4, False)]
)
def test_success_is_held_between_its_bounds_whatever_the_rewards(
    low: float | None, high: float | None, kept: bool
) -> None:
    rewards, success = torch.tensor([-3.0, -0.8, -2.0, -1.0]), torch.tensor([0.0, 1.0, 0.0, 1.0])
    groups = torch.zeros(4, dtype=torch.int64)
    assert GroupFilter(0.0, low, high)(rewards, groups, success).tolist() == [kept]
    assert GroupFilter(0.0, low, high)(rewards, groups, None).tolist() == [True], "nobody can tell"


def test_the_floor_is_the_unbiased_deviation_and_not_reached_by_rounding() -> None:
    spread = torch.tensor([0.0, 1.0])  # a deviation of sqrt(1/2)
    groups = torch.zeros(2, dtype=torch.int64)
    assert GroupFilter(0.7071)(spread, groups, None).tolist() == [True]
    assert GroupFilter(0.7072)(spread, groups, None).tolist() == [False]
    assert GroupFilter()(torch.tensor([0.3, 0.3 + 1e-7]), groups, None).tolist() == [False]
    assert GroupFilter(0.0)(torch.full((3,), 0.1), torch.zeros(3, dtype=torch.int64), None).tolist() == [False]


def test_no_groups_are_kept_of_none() -> None:
    assert GroupFilter()(torch.zeros(0), torch.zeros(0, dtype=torch.int64), None).shape == (0,)


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match=r"filter\.floor"):
        GroupFilter(-1.0)
    for low, high in ((0.9, 0.1), (-0.5, None), (None, 1.5)):
        with pytest.raises(ValueError, match=rf"success_low {low}, success_high {high}; give shares"):
            GroupFilter(success_low=low, success_high=high)
