"""Collecting the groups of a step: what is resampled, surplus, asynchronous, resumed or rejected."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from framework.data.render.sample import Sample
from framework.data.sources.world import WorldShards
from framework.data.stream.batcher import PromptBatcher
from framework.data.stream.mixture import Mixture, Part
from framework.generation.engine import Generation, Requests
from framework.objective.group_filter import GroupFilter
from framework.objective.scenario_weights import ScenarioWeights
from framework.parallel.mesh import DataRank
from framework.scene.types import SceneError
from framework.simulation.rewards.reward_sum import RewardError, RewardSum
from framework.simulation.rewards.rollouts import RolloutBatch
from framework.training.rl.collector import Collector, quota
from framework.training.rl.engine.embedded import EmbeddedEngine
from framework.training.rl.prompt_state import group_state, load_group
from framework.training.rl.rollout import RolloutGroup
from tests.training.rl.policy_setting import ANSWERS, GROUPS, Apart, Setting, collect

DROPPED = "stream hard: the mixture has another prompt, or none"


@pytest.mark.slow
def test_the_same_step_is_sampled_again_and_another_is_not(setting: Setting, groups: list[RolloutGroup]) -> None:
    def sampled(step: int) -> list[tuple[int, ...]]:
        collector = setting.collector(filter=None)
        prompts = [group.prompt for group in groups]
        return [a.tokens for _, part in collector.sampler.sample(prompts, step) for a in part]

    first = [answer.tokens for group in groups for answer in group.rollouts]
    assert sampled(0) == first
    assert sampled(1) != first


@pytest.mark.slow
def test_groups_left_over_train_in_the_next_step(setting: Setting, groups: list[RolloutGroup]) -> None:
    class Half(GroupFilter):
        def reason(self, *arguments: Any) -> Any:
            kept.append(len(kept) % 2 == 0)
            return None if kept[-1] else "no_spread"

    kept: list[bool] = []
    collector = setting.collector(filter=Half())
    collector.surplus = groups[:2]
    first = collect(collector, 3)
    assert first.groups[:2] == groups[:2]
    assert len(first.groups) == GROUPS
    assert first.slices_drawn == first.metrics["rl/rounds"] == 2
    assert first.metrics["rl/kept"] == pytest.approx(0.5)
    assert first.metrics["rl/discarded"] == first.metrics["rl/discarded/no_spread"] == kept.count(False) > 0
    left = list(collector.surplus)
    assert len(left) == 2
    assert collect(collector, 4).groups[:2] == left


@pytest.mark.guarantee(
    "With `async_rollout`, answers are sampled while the previous step trains, and their age is reported"
)
@pytest.mark.slow
def test_asynchronous_rollouts_are_a_step_old_and_another_attempts_too(setting: Setting) -> None:
    def collector(*shares: list[Sample]) -> Collector:
        made = setting.collector(filter=None, async_rollout=True, sampler=Apart)
        made.loader_steps = iter(shares) if shares else made.loader_steps
        return made

    first = collector()
    first.engine.sync([], 5)
    first.start_async(6)
    first.async_rollout.wait()
    kept = json.loads(json.dumps(first.async_rollout.state()))
    first.engine.sync([], 6)
    found = collect(first, 6)
    assert {answer.version for group in found.groups for answer in group.rollouts} == {5}
    assert found.metrics["answers/staleness"] == 1
    assert found.slices_drawn == 1
    assert first.async_rollout.take() is None, "asynchronous rollouts are used once"

    prompts = [group.prompt.sample for group in found.groups]
    second, third = collector(prompts), collector(prompts[::-1])
    for resumed in (second, third):
        resumed.engine.sync([], 6)
        resumed.resume_async(kept, 6)
    assert [group.rollouts for group in collect(second, 6).groups] == [group.rollouts for group in found.groups]
    others = collect(third, 6)
    assert {answer.version for group in others.groups for answer in group.rollouts} == {6}, "other prompts: sampled now"


@pytest.mark.slow
def test_an_engine_without_weights_of_its_own_cannot_sample_asynchronously(setting: Setting) -> None:
    class Sleeping(Apart):
        supports_async = False

    for engine in (EmbeddedEngine, Sleeping):
        with pytest.raises(
            ValueError, match=rf"stage\.async_rollout: {engine.__name__} has no weights and memory of its own"
        ):
            setting.collector(async_rollout=True, sampler=engine)


@pytest.mark.slow
def test_calls_to_the_engine_have_one_size_asynchronously_too(setting: Setting) -> None:
    together: list[int] = []

    class Counting(Apart):
        def start(self, requests: Requests) -> Callable[[], list[list[Generation]]]:
            together.append(len(requests.seeds))
            return super().start(requests)

    few = setting.collector(filter=None, async_rollout=True, sampler=Counting, generation_batch_size=4 * ANSWERS)
    few.start_async(0)
    assert together == [4, 2]
    found = collect(few, 0).groups
    plain = setting.collector(filter=None)
    plain.loader_steps = iter([[group.prompt.sample for group in found]])
    for group, expected in zip(found, collect(plain, 0).groups, strict=True):
        assert [answer.tokens for answer in group.rollouts] == [answer.tokens for answer in expected.rollouts]


def test_state_of_a_group_is_read_back_with_its_prompt(setting: Setting, groups: list[RolloutGroup]) -> None:
    for group in groups:
        again = load_group(json.loads(json.dumps(group_state(group, setting.loader.mixture))), setting.loader)
        assert again is not None
        assert again.rollouts == group.rollouts
        assert torch.equal(again.rewards, group.rewards)
        assert group.success is not None
        assert again.success is not None
        assert torch.equal(again.success, group.success)
        assert torch.equal(again.prompt.sample.rendered.input_ids, group.prompt.sample.rendered.input_ids)


@pytest.mark.guarantee("An RL stage continues on another mesh, and answers train only with their own prompt")
def test_answers_to_another_prompt_are_dropped(
    setting: Setting, groups: list[RolloutGroup], caplog: pytest.LogCaptureFixture
) -> None:
    """A stream before it moves a prompt to another index; other data or tasks make it another prompt."""
    hard = setting.stage.mixture.parts["hard"]
    source = WorldShards(str(setting.folder), scenes=24, seed=7, kinds=hard.source.kinds, workers=1)  # type: ignore[attr-defined]
    reasons = dataclasses.replace(hard, tasks={"reason": 1.0})
    kept = [json.loads(json.dumps(group_state(group, setting.loader.mixture))) for group in groups]

    def again(**parts: Part) -> list[RolloutGroup | None]:
        loader = setting.train.data.loader(
            Mixture(parts),
            setting.model.processor,
            stage="rl",
            samples=100,
            seed=0,
            folder=setting.folder,
            is_writer=False,
            batcher=PromptBatcher(),
        )
        return [load_group(state, loader) for state in kept]

    moved = again(other=dataclasses.replace(hard, source=source), hard=hard)
    for group, found in zip(groups, moved, strict=True):
        assert found is not None
        assert found.prompt.sample.address == group.prompt.sample.address._replace(stream=1)  # type: ignore[union-attr]
        assert torch.equal(found.prompt.sample.rendered.input_ids, group.prompt.sample.rendered.input_ids)
    assert DROPPED not in caplog.text
    for gone in (again(hard=dataclasses.replace(hard, source=source)), again(other=hard)):
        assert gone == [None] * GROUPS
    assert DROPPED in caplog.text
    others = again(hard=reasons)
    assert [found is None for found in others] == [group.prompt.sample.task != "reason" for group in groups]


def test_a_rank_that_answered_nothing_idles_on_anothers_group(
    setting: Setting, groups: list[RolloutGroup], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a resume, with nothing left over for this rank and none of its prompts chosen."""
    collector = setting.collector(filter=None)
    collector.dp_rank = DataRank(1, 2)

    def gather(mine: Any, group: None) -> list[Any]:
        others = {bool: True, int: GROUPS, dict: {}}
        return [others.get(type(mine), groups[0]), mine]

    monkeypatch.setattr("framework.training.rl.collector.all_gather_objects", gather)
    found = collect(collector, 0)
    assert found.groups == []
    assert found.slices_drawn == 0, "nothing is drawn or answered for it"
    assert collector.spare is groups[0]
    own = setting.collector(filter=None)
    own.dp_rank = DataRank(1, 2)
    own.surplus = groups[1:]
    collect(own, 0)
    assert own.spare is groups[1]


@pytest.mark.parametrize(("succeed", "kept"), [(0, False), (1, True), (ANSWERS - 1, True), (ANSWERS, False)])
def test_groups_that_neither_always_nor_never_succeed_are_kept_whatever_the_rewards(
    setting: Setting, groups: list[RolloutGroup], succeed: int, kept: bool
) -> None:
    """The preset's bounds, with the rewards of a recipe whose sums are all below 0."""
    collector = setting.collector(filter=GroupFilter(success_low=0.1, success_high=0.9))
    rewards, success = torch.linspace(-1.9, -0.8, ANSWERS), (torch.arange(ANSWERS) < succeed).float()
    rollouts = [
        dataclasses.replace(rollout, reward=reward, unshaped_reward=reward, success=bool(good))
        for rollout, reward, good in zip(groups[0].rollouts, rewards.tolist(), success, strict=True)
    ]
    group = dataclasses.replace(groups[0], rollouts=tuple(rollouts))
    assert (collector._why_dropped(group) is None) is kept
    mapless = tuple(dataclasses.replace(rollout, success=None) for rollout in rollouts)
    mapless_group = dataclasses.replace(group, rollouts=mapless)
    assert collector._why_dropped(mapless_group) is None, "without a map the spread decides"


def test_rewards_that_fail_more_often_than_the_budget_allows_end_the_step(setting: Setting) -> None:
    def broken(rollouts: RolloutBatch) -> Tensor:
        raise KeyError("lanes")

    rewards = RewardSum({"broken": broken}, {"broken": 1.0}, error_budget=GROUPS * ANSWERS - 1)
    with pytest.raises(RewardError, match=f"failed {GROUPS * ANSWERS} times"):
        collect(setting.collector(rewards=rewards), 0)


@dataclasses.dataclass
class Unboxed:
    """The loader's shares, in which one scene of each is a recording without boxes."""

    shares: Any

    def __iter__(self) -> Any:
        return self

    def __next__(self) -> list[Sample]:
        first, *others = next(self.shares)
        return [first._replace(scene=dataclasses.replace(first.scene, boxes=None)), *others]


@pytest.mark.slow
def test_a_scene_that_cannot_be_driven_costs_its_own_answers_alone(setting: Setting) -> None:
    expected = collect(setting.collector(filter=None), 0).groups
    rewards = setting.stage.rewards
    rewards.errors.clear()
    collector = setting.collector(filter=None, max_resample_factor=1)
    collector.loader_steps = Unboxed(collector.loader_steps)
    found = collect(collector, 0)
    assert rewards.errors == {"simulation": ANSWERS}
    assert found.metrics["reward/errors"] == pytest.approx(1 / GROUPS)
    assert len(found.groups) == GROUPS - 1
    for group, alike in zip(found.groups, expected[1:], strict=True):
        assert group.rollouts == alike.rollouts
        torch.testing.assert_close(group.rewards, alike.rewards)
    rewards.errors.clear()


def test_scenes_that_cannot_be_driven_are_in_the_rewards_budget(setting: Setting) -> None:
    rewards = RewardSum({"none": lambda rollouts: rollouts.tokens}, {"none": 1.0}, error_budget=ANSWERS - 1)
    collector = setting.collector(filter=None, rewards=rewards)
    collector.loader_steps = Unboxed(collector.loader_steps)
    with pytest.raises(RewardError, match=rf"failed {ANSWERS} times.*'simulation'.*field `boxes` is missing"):
        collect(collector, 0)


def test_a_programming_error_in_judging_is_raised(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise TypeError("a bug")

    monkeypatch.setattr("framework.training.rl.simulate.roll_out", broken)
    with pytest.raises(TypeError, match="a bug"):
        collect(setting.collector(filter=None), 0)


def test_when_no_group_is_good_the_run_ends_by_name(setting: Setting) -> None:
    with pytest.raises(SceneError, match="12 prompts gave 0 of 6 groups that `filter` keeps"):
        collect(setting.collector(filter=GroupFilter(floor=1e9), max_resample_factor=2), 0)


def test_a_step_of_few_groups_is_told(
    setting: Setting, groups: list[RolloutGroup], caplog: pytest.LogCaptureFixture
) -> None:
    collector = setting.collector(filter=GroupFilter(floor=1e9), max_resample_factor=1)
    collector.surplus = groups[:2]
    found = collect(collector, 5)
    assert found.groups == groups[:2]
    assert found.metrics["rl/filled"] == pytest.approx(2 / 6)
    assert "step 5: 6 prompts gave 2 of 6 groups that `filter` keeps; it is trained on these" in caplog.text


@pytest.mark.slow
def test_prompts_that_are_passed_over_use_up_no_round(setting: Setting) -> None:
    """All but every third: a round's prompts are answered in three shares of the loader."""
    collector = setting.collector(filter=None, max_resample_factor=1, prompt_weights=ScenarioWeights())
    turns = itertools.count()
    collector.curriculum.select = lambda prompts, step: [p for p in prompts if next(turns) % 3 == 0]  # type: ignore[method-assign]
    found = collect(collector, 0)
    assert len(found.groups) == GROUPS
    assert found.slices_drawn == found.metrics["rl/rounds"] == 3
    collector.curriculum.select = lambda prompts, step: []  # type: ignore[method-assign]
    with pytest.raises(SceneError, match="0 prompts gave 0 of 6 groups"):
        collect(collector, 1)


@pytest.mark.parametrize(
    ("ready", "wanted", "expected"),
    [([5, 5], 6, [3, 3]), ([1, 9], 6, [1, 5]), ([2, 2], 6, [2, 2]), ([4, 0, 4], 5, [3, 0, 2])],
)
def test_ranks_share_what_is_ready(ready: list[int], wanted: int, expected: list[int]) -> None:
    assert quota(ready, wanted) == expected
