"""What a step logs of all that was sampled, and what of it a scene cannot tell."""

from __future__ import annotations

from typing import cast

import numpy as np
import pytest
import torch

from framework.generation.engine import Generation
from framework.objective.scenario_weights import ScenarioWeights
from framework.parallel.mesh import DataRank
from framework.scene.types import Scene, Trajectory
from framework.simulation.rewards.driving import OffRoad
from framework.simulation.rewards.reward_sum import RewardSum
from framework.simulation.rewards.rollouts import RolloutBatch, roll_out
from framework.simulation.simulator import Simulator
from framework.training.rl.metrics import MeanMetrics, count_answers, success_of
from framework.training.rl.prompt_curriculum import PromptCurriculum
from framework.training.rl.rollout import Prompt
from tests.simulation.scenes import RATE, driven, make_scene, moving, trajectory

MAPPED = make_scene([moving("car", 30.0, 0.0)], kind="mapped")
UNMAPPED = make_scene([moving("car", 30.0, 0.0)], kind="unmapped", drivable=())
GOOD, INTO_THE_CAR = trajectory(4.0), trajectory(8.0)
ASIDE = np.array([0.0, 8.0, 0.0, 0.0])
OFF = Trajectory(driven(4.0) + ASIDE, RATE)


def _rollouts(*pairs: tuple[Scene, Trajectory | None]) -> RolloutBatch:
    scenes, plans = zip(*pairs, strict=True)
    return roll_out(Simulator(), scenes, [""] * len(plans), [None] * len(plans), [1] * len(plans), plans)


def test_success_is_known_where_there_is_a_map() -> None:
    plans = (GOOD, INTO_THE_CAR, OFF, None)
    assert success_of(_rollouts(*((MAPPED, plan) for plan in plans))).tolist() == [1, 0, 0, 0]
    assert success_of(_rollouts(*((UNMAPPED, plan) for plan in plans))).isnan().all()


def test_scenes_without_a_map_are_not_counted_as_on_the_road() -> None:
    rollouts = _rollouts((MAPPED, GOOD), (MAPPED, OFF), (UNMAPPED, GOOD), (UNMAPPED, OFF))
    rewards = RewardSum({"off_road": OffRoad()}, {"off_road": 1.0})(rollouts)
    answer = Generation("", (1,), (0.0,), complete=True, version=0)
    metrics, curriculum = (
        MeanMetrics(),
        PromptCurriculum(ScenarioWeights("hard", 1.0, 0.2, 0.9), lambda prompt, step: 0.0),
    )
    prompt = cast(Prompt, None)
    count_answers(rollouts, rewards, [(prompt, [answer, answer])] * 2, success_of(rollouts), metrics)
    curriculum.count_answers(rollouts.scenes, success_of(rollouts))
    curriculum.update(lambda mine: [mine])
    found = metrics.over_ranks(DataRank())
    assert found["driving/off_road"] == found["driving/off_road/mapped"] == pytest.approx(0.5)
    assert "driving/off_road/unmapped" not in found
    assert found["driving/at_fault_collision/unmapped"] == 0
    assert (found["rl/all_succeed"], found["rl/all_fail"]) == (0, 0), "of the one group that can be told"
    assert curriculum.counts == {"mapped": [1.0, 2.0]}
    assert torch.isfinite(torch.tensor(list(found.values()))).all()


def test_a_mixture_of_kinds_does_not_move_the_reward_over_kinds() -> None:
    found = []
    for often in (1, 3):
        rollouts = _rollouts(*[(MAPPED, OFF)] * often, (UNMAPPED, GOOD))
        rewards = RewardSum({"off_road": OffRoad()}, {"off_road": 1.0})(rollouts)
        answer, prompt = Generation("", (1,), (0.0,), complete=True, version=0), cast(Prompt, None)
        metrics = MeanMetrics()
        answered = [(prompt, [answer]) for _ in rollouts.scenes]
        count_answers(rollouts, rewards, answered, success_of(rollouts), metrics)
        found.append(metrics.over_ranks(DataRank()))
    rare, often = found
    assert rare["reward/mean"] > often["reward/mean"]
    assert rare["reward/over_kinds"] == often["reward/over_kinds"]
    assert often["reward/over_kinds"] == (often["reward/mean/mapped"] + often["reward/mean/unmapped"]) / 2
