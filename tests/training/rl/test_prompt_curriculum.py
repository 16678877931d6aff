"""The prompt curriculum: kinds that fail are answered more often, by counts of all ranks that fade and resume."""

from __future__ import annotations

import dataclasses
from collections import Counter
from types import SimpleNamespace
from typing import Any, cast

import pytest

from framework.generation.engine import answer_seed
from framework.objective.scenario_weights import ScenarioWeights
from framework.training.rl.prompt_curriculum import PromptCurriculum
from framework.training.rl.rollout import Prompt

EASY, HARD = "follow", "cut_in"
WEIGHTS = ScenarioWeights("hard", power=1.0, spread=0.0, memory=0.5)


def _prompts(count: int) -> list[Prompt]:
    """As many of each kind, with nothing but what the choice reads."""
    made = [SimpleNamespace(number=n, scene=SimpleNamespace(kind=(EASY, HARD)[n % 2])) for n in range(2 * count)]
    return cast(list[Prompt], made)


def _draw(prompt: Any, step: int) -> float:
    return answer_seed(3, step, str(prompt.number), -1) / 2**63


def _here(value: Any) -> list[Any]:
    """One rank alone."""
    return [value]


def _measured(weights: ScenarioWeights = WEIGHTS) -> PromptCurriculum:
    """After 8 of 8 easy and 2 of 8 hard answers succeeded: rates 9/10 and 3/10."""
    curriculum = PromptCurriculum(weights, _draw)
    for number in range(8):
        curriculum.count(EASY, True)
        curriculum.count(HARD, number < 2)
    curriculum.update(_here)
    return curriculum


def test_without_weights_every_prompt_is_answered_and_nothing_is_kept() -> None:
    curriculum = PromptCurriculum(None, _draw)
    curriculum.count(EASY, True)
    curriculum.update(_here)
    prompts = _prompts(5)
    assert curriculum.select(prompts, 0) == prompts
    assert curriculum.counts == curriculum.metrics() == {}


def test_before_anything_was_counted_nothing_is_told() -> None:
    """As after a resume that trains what was left over."""
    curriculum = PromptCurriculum(WEIGHTS, _draw)
    curriculum.update(_here)
    assert curriculum.metrics() == {}


def test_kinds_that_were_never_tried_are_all_answered() -> None:
    prompts = _prompts(50)
    assert PromptCurriculum(WEIGHTS, _draw).select(prompts, 0) == prompts


@pytest.mark.guarantee(
    "With `prompt_weights`, a stage samples more prompts from the kinds of scenario that the policy fails"
)
def test_kinds_are_answered_in_the_ratio_of_their_failures() -> None:
    curriculum = _measured()
    assert curriculum.metrics() == pytest.approx({f"scenarios/{EASY}": 1 / 7, f"scenarios/{HARD}": 1.0})
    count = 4000
    found = Counter(prompt.scene.kind for prompt in curriculum.select(_prompts(count), 1))
    assert found[HARD] == count
    assert found[EASY] / count == pytest.approx(1 / 7, abs=0.03)  # five standard deviations


def test_the_same_step_chooses_the_same_prompts_and_another_does_not() -> None:
    curriculum, prompts = _measured(), _prompts(200)
    assert curriculum.select(prompts, 1) == curriculum.select(prompts, 1)
    assert curriculum.select(prompts, 1) != curriculum.select(prompts, 2)


def test_a_resumed_run_chooses_what_the_undisturbed_one_does() -> None:
    undisturbed, resumed = _measured(), PromptCurriculum(WEIGHTS, _draw)
    resumed.counts = dict(undisturbed.counts)
    assert resumed.select(_prompts(200), 1) == undisturbed.select(_prompts(200), 1)


def test_counts_fade_and_answers_count_once() -> None:
    curriculum = _measured()
    assert curriculum.counts == {EASY: [8.0, 8.0], HARD: [2.0, 8.0]}
    curriculum.count(HARD, True)
    curriculum.update(_here)
    assert curriculum.counts == {EASY: [4.0, 4.0], HARD: [2.0, 5.0]}


def test_counts_are_of_all_ranks_those_with_other_kinds_included() -> None:
    curriculum = PromptCurriculum(WEIGHTS, _draw)
    curriculum.count(EASY, False)
    curriculum.update(lambda mine: [mine, {HARD: [3.0, 4.0]}, {EASY: [1.0, 2.0]}])
    assert curriculum.counts == {EASY: [1.0, 3.0], HARD: [3.0, 4.0]}


def test_uncertain_kinds_come_before_hopeless_ones() -> None:
    ratios = _measured(dataclasses.replace(WEIGHTS, focus="uncertain")).ratios(["never"])
    assert ratios["never"] == 1.0  # one in two
    assert ratios[EASY] < ratios[HARD] < ratios["never"]
