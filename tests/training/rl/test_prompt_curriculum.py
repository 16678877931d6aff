"""The scenario curriculum: kinds that fail are answered more often, by counts of all ranks that fade and resume."""

from __future__ import annotations

import dataclasses
from collections import Counter
from types import SimpleNamespace
from typing import Any, cast

import pytest

from framework.data.render.sample import Sample
from framework.generation.engine import answer_seed
from framework.objective.scenario_weights import ScenarioWeights
from framework.training.rl.prompt_curriculum import ScenarioSampling

EASY, HARD = "follow", "cut_in"
WEIGHTS = ScenarioWeights("hard", power=1.0, spread=0.0, memory=0.5)


def _prompts(count: int) -> list[Sample]:
    """As many of each kind, with nothing but what the choice reads."""
    made = [SimpleNamespace(number=n, scene=SimpleNamespace(kind=(EASY, HARD)[n % 2])) for n in range(2 * count)]
    return cast(list[Sample], made)


def _draw(prompt: Any, step: int) -> float:
    return answer_seed(3, step, str(prompt.number), -1) / 2**63


def _here(value: Any) -> list[Any]:
    """One rank alone."""
    return [value]


def _measured(weights: ScenarioWeights = WEIGHTS) -> ScenarioSampling:
    """After 8 of 8 easy and 2 of 8 hard answers succeeded: rates 9/10 and 3/10."""
    sampling = ScenarioSampling(weights, _draw)
    for number in range(8):
        sampling.count(EASY, True)
        sampling.count(HARD, number < 2)
    sampling.remember(_here)
    return sampling


def test_without_weights_every_prompt_is_answered_and_nothing_is_kept() -> None:
    sampling = ScenarioSampling(None, _draw)
    sampling.count(EASY, True)
    sampling.remember(_here)
    prompts = _prompts(5)
    assert sampling.chosen(prompts, 0) == prompts
    assert sampling.counts == sampling.metrics() == {}


def test_before_anything_was_counted_nothing_is_told() -> None:
    """As after a resume that trains what was left over."""
    sampling = ScenarioSampling(WEIGHTS, _draw)
    sampling.remember(_here)
    assert sampling.metrics() == {}


def test_kinds_that_were_never_tried_are_all_answered() -> None:
    prompts = _prompts(50)
    assert ScenarioSampling(WEIGHTS, _draw).chosen(prompts, 0) == prompts


def test_kinds_are_answered_in_the_ratio_of_their_failures() -> None:
    sampling = _measured()
    assert sampling.metrics() == pytest.approx({f"scenarios/{EASY}": 1 / 7, f"scenarios/{HARD}": 1.0})
    count = 4000
    found = Counter(prompt.scene.kind for prompt in sampling.chosen(_prompts(count), 1))
    assert found[HARD] == count
    assert found[EASY] / count == pytest.approx(1 / 7, abs=0.03)  # five standard deviations


def test_the_same_step_chooses_the_same_prompts_and_another_does_not() -> None:
    sampling, prompts = _measured(), _prompts(200)
    assert sampling.chosen(prompts, 1) == sampling.chosen(prompts, 1)
    assert sampling.chosen(prompts, 1) != sampling.chosen(prompts, 2)


def test_a_resumed_run_chooses_what_the_undisturbed_one_does() -> None:
    undisturbed, resumed = _measured(), ScenarioSampling(WEIGHTS, _draw)
    resumed.counts = dict(undisturbed.counts)
    assert resumed.chosen(_prompts(200), 1) == undisturbed.chosen(_prompts(200), 1)


def test_counts_fade_and_answers_count_once() -> None:
    sampling = _measured()
    assert sampling.counts == {EASY: [8.0, 8.0], HARD: [2.0, 8.0]}
    sampling.count(HARD, True)
    sampling.remember(_here)
    assert sampling.counts == {EASY: [4.0, 4.0], HARD: [2.0, 5.0]}


def test_counts_are_of_all_ranks_those_with_other_kinds_included() -> None:
    sampling = ScenarioSampling(WEIGHTS, _draw)
    sampling.count(EASY, False)
    sampling.remember(lambda mine: [mine, {HARD: [3.0, 4.0]}, {EASY: [1.0, 2.0]}])
    assert sampling.counts == {EASY: [1.0, 3.0], HARD: [3.0, 4.0]}


def test_uncertain_kinds_come_before_hopeless_ones() -> None:
    ratios = _measured(dataclasses.replace(WEIGHTS, focus="uncertain")).ratios(["never"])
    assert ratios["never"] == 1.0  # one in two
    assert ratios[EASY] < ratios[HARD] < ratios["never"]
