"""Which groups a step keeps: by spread, not by mean alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from framework.objective.group_filter import REASONS, GroupFilter

GROUPS = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 3, 4, 4, 4, 4])
REWARDS = torch.tensor([1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.5, 0.3, 0.3, 0.3, 0.3])
"""All solved, none solved, one of two, a single answer, all the same in between."""


SUCCESS = torch.tensor([1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 0.0, 1.0, 0.0, 1.0])


def kept(
    filters: GroupFilter, rewards: Tensor, groups: Tensor, success: Tensor | None, span: float = 1.0
) -> list[bool]:
    found = []
    for group in range(int(groups.max()) + 1):
        own = groups == group
        answers = list(range(int(own.sum())))
        found.append(filters.reason(rewards[own], None if success is None else success[own], answers, 0, span) is None)
    return found


def test_only_a_group_that_differs_is_kept() -> None:
    assert kept(GroupFilter(), REWARDS, GROUPS, SUCCESS) == [False, False, True, False, False]


@pytest.mark.fault("groups that all succeed, or all fail")
def test_groups_that_succeed_or_fail_altogether_are_dropped_however_their_rewards_vary() -> None:
    rewards, groups = torch.arange(9.0), torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 2])
    success = torch.tensor([1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 1.0])
    assert kept(GroupFilter(), rewards, groups, success) == [False, False, True]
    assert kept(GroupFilter(), rewards, groups, None) == [True] * 3, "nobody can tell"


def test_success_within_bounds_does_not_help_a_group_without_spread() -> None:
    assert kept(GroupFilter(success_low=0.1, success_high=0.9), REWARDS, GROUPS, SUCCESS) == [
        False,
        False,
        True,
        False,
        False,
    ]


@pytest.mark.parametrize(
    ("low", "high", "passes"), [(0.5, None, True), (0.6, None, False), (None, 0.5, True), (None, 0.4, False)]
)
def test_success_is_held_between_its_bounds_whatever_the_rewards(
    low: float | None, high: float | None, passes: bool
) -> None:
    rewards, success = torch.tensor([-3.0, -0.8, -2.0, -1.0]), torch.tensor([0.0, 1.0, 0.0, 1.0])
    groups = torch.zeros(4, dtype=torch.int64)
    assert kept(GroupFilter(0.0, low, high), rewards, groups, success) == [passes]
    assert kept(GroupFilter(0.0, low, high), rewards, groups, None) == [True], "nobody can tell"


def test_the_floor_is_the_unbiased_deviation_and_not_reached_by_rounding() -> None:
    spread = torch.tensor([0.0, 1.0])  # a deviation of sqrt(1/2)
    groups = torch.zeros(2, dtype=torch.int64)
    assert kept(GroupFilter(0.7071), spread, groups, None) == [True]
    assert kept(GroupFilter(0.7072), spread, groups, None) == [False]
    assert kept(GroupFilter(), torch.tensor([0.3, 0.3 + 1e-7]), groups, None) == [False]
    assert kept(GroupFilter(0.0), torch.full((3,), 0.1), torch.zeros(3, dtype=torch.int64), None) == [False]


def test_the_floor_is_a_share_of_the_span_that_the_reward_declares() -> None:
    rewards, one = torch.tensor([0.0, 0.02]), torch.zeros(2, dtype=torch.int64)  # a deviation of 0.0141
    assert kept(GroupFilter(), rewards, one, None, span=14.0) == [True]
    assert kept(GroupFilter(), rewards, one, None, span=14.2) == [False]
    assert kept(GroupFilter(), rewards / 1e4, one, None, span=1e-3) == [True]
    assert kept(GroupFilter(), rewards / 1e5, one, None, span=1e-9) == [False], "1e-6 is the least whatever the span"


@pytest.mark.guarantee("A discarded group is counted by reason: spread, success, length, repetition")
def test_a_group_is_dropped_for_the_first_reason_that_holds() -> None:
    chooses, mixed = (
        GroupFilter(success_low=0.3, success_high=0.7, max_cut_share=0.5, min_distinct=2),
        [0.0, 1.0, 0.0, 1.0],
    )
    cases: dict[str | None, tuple[list[float], list[float] | None, str, int]] = {
        None: ([0.0, 1.0, 2.0, 3.0], mixed, "aabb", 2),
        "unjudged": ([1.0], [1.0], "a", 0),
        "overlong": ([0.0, 1.0, 2.0, 3.0], mixed, "aabb", 3),
        "repeated": ([0.0, 1.0, 2.0, 3.0], mixed, "aaaa", 0),
        "all_succeed": ([0.0, 1.0, 2.0, 3.0], [1.0] * 4, "aabb", 0),
        "none_succeeds": ([0.0, 1.0, 2.0, 3.0], [0.0] * 4, "aabb", 0),
        "no_spread": ([2.0] * 4, mixed, "aabb", 0),
        "success_bounds": ([0.0, 1.0, 2.0, 3.0], [0.0, 0.0, 0.0, 1.0], "aabb", 0),
    }
    assert {*cases} == {None, *REASONS}
    for reason, (rewards, success, answers, cut) in cases.items():
        judged = None if success is None else torch.tensor(success)
        assert chooses.reason(torch.tensor(rewards), judged, list(answers), cut) == reason
    assert chooses.reason(torch.arange(4.0), None, list("aabb"), 0) is None, "nobody can tell who succeeds"


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match=r"filter\.floor"):
        GroupFilter(-1.0)
    for low, high in ((0.9, 0.1), (-0.5, None), (None, 1.5)):
        with pytest.raises(ValueError, match=rf"success_low {low}, success_high {high}; give shares"):
            GroupFilter(success_low=low, success_high=high)
