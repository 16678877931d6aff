"""The sum of rewards, its failures and its bounds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from framework.simulation.rewards.answers import Format, Overlong
from framework.simulation.rewards.driving import (
    Collision,
    Comfort,
    Imitation,
    Progress,
)
from framework.simulation.rewards.reward_sum import RewardError, RewardSum
from framework.simulation.rewards.rollouts import Reward, RolloutBatch
from tests.simulation.rewards.answered import FREE, WALL, answers, aside
from tests.simulation.scenes import make_scene, trajectory


def test_the_sum_keeps_its_parts_apart() -> None:
    rewards = RewardSum(
        {"imitation": Imitation(), "collision": Collision(), "overlong": Overlong(100, 20)},
        {"imitation": 1.0, "collision": 2.0, "overlong": 0.5},
        shaping=["overlong"],
    )
    judged = rewards(answers((WALL, aside(0.0)), (FREE, aside(1.5)), (FREE, None), tokens=90))
    assert {name: part.tolist() for name, part in judged.parts.items()} == {
        "imitation": pytest.approx([0.0, -0.2, -1.0]),
        "collision": [-1.0, 0.0, -1.0],
        "overlong": [-0.5] * 3,
    }
    assert judged.unshaped.tolist() == pytest.approx([-2.0, -0.2, -3.0])
    assert judged.total.tolist() == pytest.approx([-2.25, -0.45, -3.25])
    assert judged.valid.all()
    assert not rewards.errors


class Picky:
    """Refuses the scenes that `refusals` names: by raising, or with what it maps them to."""

    def __init__(self, refusals: Mapping[str, float | None]) -> None:
        self.refusals = refusals

    def __call__(self, rollouts: RolloutBatch) -> Tensor:
        given = [self.refusals.get(scene.id, 1.0) for scene in rollouts.scenes]
        if None in given:
            raise KeyError("lanes")
        return torch.tensor(given)


@pytest.mark.fault("rewards that are no number, or absurd")
@pytest.mark.parametrize("absurd", [float("nan"), float("inf"), 3e38, -1e12])
def test_answers_that_cannot_be_judged_are_counted_and_dropped(absurd: float) -> None:
    pairs = [(make_scene(name=name), trajectory(8.0)) for name in "abcd"]
    rewards = RewardSum(
        {"picky": Picky({"b": None, "d": absurd}), "progress": Progress()}, {"picky": 1.0, "progress": 1.0}
    )
    judged = rewards(answers(*pairs))
    assert judged.valid.tolist() == [True, False, True, False]
    assert judged.total.tolist() == pytest.approx([2.0, 0.0, 2.0, 0.0])
    assert all(part.isfinite().all() for part in judged.parts.values())
    rewards.settle(lambda mine: [mine, mine])
    assert rewards.errors == {"picky": 4}, "of all ranks"


class Raising:
    def __call__(self, rollouts: RolloutBatch) -> Tensor:
        raise ZeroDivisionError


def test_the_worst_reward_is_that_of_an_answer_without_a_plan() -> None:
    parts: dict[str, Reward] = {"progress": Progress(), "collision": Collision(), "raising": Raising()}
    rewards = RewardSum(parts, {"progress": 1.0, "collision": 2.0, "raising": 4.0})
    sound = answers((FREE, trajectory(8.0)), (WALL, None))
    assert rewards.worst(sound).tolist() == [-6.0, -6.0]
    assert not rewards.errors


def test_the_worst_rewards_are_summed_in_the_order_of_the_components() -> None:
    """A sum of float32 depends on its order, and that of a set of names on the process."""
    asked: list[str] = []

    def part(name: str) -> Reward:
        def reward(rollouts: RolloutBatch) -> Tensor:
            asked.append(name)
            return torch.zeros(len(rollouts))

        return reward

    names = [f"reward {number}" for number in range(12, 0, -1)]
    RewardSum({name: part(name) for name in names}, dict.fromkeys(names, 1.0), shaping=names[:2]).worst(
        answers((FREE, None))
    )
    assert asked == names[2:]


def test_the_budget_of_errors_is_a_clear_stop() -> None:
    pairs = [(make_scene(name=name), trajectory(8.0)) for name in "ab"]
    rewards = RewardSum({"picky": Picky({"a": None, "b": None})}, {"picky": 1.0}, error_budget=3)
    rewards(answers(*pairs))
    rewards.settle(lambda mine: [mine])
    rewards(answers(*pairs))
    with pytest.raises(
        RewardError, match=r"failed 4 times, error_budget allows 3 .*picky on scene b: KeyError\('lanes'\)"
    ):
        rewards.settle(lambda mine: [mine])


def test_ranks_share_one_budget_of_errors_and_stop_together() -> None:
    told: list[Any] = []
    ranks = [RewardSum({"picky": Picky({"a": None})}, {"picky": 1.0}, error_budget=1) for _ in range(2)]
    for rank in ranks:
        rank(answers((make_scene(name="a"), trajectory(8.0))))

    def gather(mine: Any) -> list[Any]:
        told.append(mine)
        return []

    for rank in ranks:
        rank.settle(gather)
    for rank in ranks:
        with pytest.raises(RewardError, match=r"failed 2 times, error_budget allows 1 .*picky on scene a"):
            rank.settle(lambda _: told)
        assert rank.errors == {"picky": 2}


def test_a_component_must_give_a_value_to_each() -> None:
    def one(rollouts: RolloutBatch) -> Tensor:
        return torch.zeros(1)

    rewards = RewardSum({"one": one}, {"one": 1.0})
    judged = rewards(answers((FREE, trajectory(8.0)), (FREE, trajectory(8.0))))
    assert judged.valid.all()  # asked one by one it does
    wrong = RewardSum({"all": lambda rollouts: torch.zeros(7)}, {"all": 1.0}, error_budget=0)
    wrong(answers((FREE, None)))
    with pytest.raises(RewardError, match="gave"):
        wrong.settle(lambda mine: [mine])


@pytest.mark.parametrize(
    ("components", "weights", "shaping"),
    [
        ({}, {}, []),
        ({"a": Format()}, {}, []),
        ({"a": Format()}, {"a": 1.0, "b": 1.0}, []),
        ({"a": Format()}, {"a": 1.0}, ["b"]),
    ],
)
def test_names_must_match(components: dict[str, Reward], weights: dict[str, float], shaping: list[str]) -> None:
    with pytest.raises(ValueError, match="give every component one weight"):
        RewardSum(components, weights, shaping)


def test_negative_weights_are_refused() -> None:
    with pytest.raises(ValueError, match="give 0 or more"):
        RewardSum({"comfort": Comfort()}, {"comfort": -1.0})
