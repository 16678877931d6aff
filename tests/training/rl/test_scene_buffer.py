"""Hard scenes are answered again: on any number of ranks alike, and after a resume as before it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from framework.objective.scene_replay import SceneReplay
from framework.training.rl.collector import Collector
from framework.training.rl.rollout import Prompt
from framework.training.rl.scene_buffer import SceneBuffer
from tests.training.rl.policy_setting import GROUPS, Setting, collect


@pytest.fixture(scope="module")
def collector(setting: Setting) -> Collector:
    """A step of a random policy, which fails, has been answered."""
    made = setting.collector(filter=None, prompt_weights=SceneReplay(share=0.5, high=1.0))
    metrics = collect(made, 0).metrics
    assert metrics["replay/scenes"] == len(made.buffer.kept) > 0
    return made


@pytest.fixture(scope="module")
def fresh(collector: Collector) -> list[Prompt]:
    return [Prompt.of(sample, collector.loader) for _ in range(4) for sample in next(collector.loader_steps)]


@pytest.mark.slow
def test_scenes_that_failed_take_the_place_of_others(collector: Collector, fresh: list[Prompt]) -> None:
    filled = collector.buffer.fill(fresh, 1)
    again = [(one, given) for one, given in zip(filled, fresh, strict=True) if one is not given]
    assert len(fresh) / 4 < len(again) < len(fresh) * 3 / 4
    for one, given in again:
        assert one.scene.id in collector.buffer.kept
        assert one.id.endswith(f"~{given.id}")
    assert len({one.id for one in filled}) == len(fresh) == 4 * GROUPS, "a scene that comes twice gets other answers"
    assert [one.id for one in collector.buffer.fill(fresh, 2)] != [one.id for one in filled]


@pytest.mark.guarantee("Scenes that are answered again are the same on any number of ranks, and after a resume")
@pytest.mark.slow
def test_ranks_and_resumed_runs_answer_the_same_again(collector: Collector, fresh: list[Prompt]) -> None:
    whole = [(one.id, one.checksum) for one in collector.buffer.fill(fresh, 1)]
    halves = [*collector.buffer.fill(fresh[::2], 1), *collector.buffer.fill(fresh[1::2], 1)]
    assert sorted((one.id, one.checksum) for one in halves) == sorted(whole)
    resumed = SceneBuffer(collector.buffer.replay, collector.sampler.uniform, collector.loader)
    resumed.load(json.loads(json.dumps(collector.buffer.state())))
    assert [(one.id, one.checksum) for one in resumed.fill(fresh, 1)] == whole


@pytest.mark.slow
def test_measurements_of_all_ranks_add_up(collector: Collector, fresh: list[Prompt]) -> None:
    """A scene that two ranks answered counts as one; one that has gone is answered no more."""

    def counted(parts: list[list[tuple[Prompt, float, int]]]) -> dict[str, Any]:
        buffer = SceneBuffer(SceneReplay(), collector.sampler.uniform, collector.loader)
        for prompt, successes, answers in parts[0]:
            buffer.count(prompt, successes, answers, 3)
        other = SceneBuffer(SceneReplay(), collector.sampler.uniform, collector.loader)
        for part in parts[1:]:
            for prompt, successes, answers in part:
                other.count(prompt, successes, answers, 3)
        told = [{name: tuple(one) for name, one in each._new.items()} for each in (buffer, other)]
        buffer.update(lambda _: told, 3)
        return buffer.state()

    one, two = fresh[:2]
    apart = counted([[(one, 1, 4), (two, 4, 4)], [(one, 3, 8)]])
    assert apart == counted([[(one, 4, 12), (two, 4, 4)]])
    assert list(apart) == [one.scene.id]
    lost = SceneBuffer(SceneReplay(share=1.0), collector.sampler.uniform, collector.loader)
    lost.load({"gone": [{"stream": "gone", "data": "", "turn": 0, "sample": 0, "tokens": 0}, 0.0, 4.0, 0]})
    assert lost.fill(fresh, 1) == fresh
