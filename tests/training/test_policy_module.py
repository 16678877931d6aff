"""Reinforcement learning, step by step: what is drawn is scored, and no split of a step changes its gradient."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from torch import Tensor

from framework.data.collate import collate
from framework.data.feed import StageRun
from framework.data.loader import Prompts, Sample, StepLoader, collate_answers
from framework.data.mixture import Mixture, Part
from framework.data.world_shards import WorldShards
from framework.model.assembly import LanguageActionModel
from framework.model.branches import branch_sources
from framework.model.grammar import refused_tokens
from framework.objective.bitmask import holds, spelled_out
from framework.objective.group_filter import GroupFilter
from framework.parallel.mesh import DataRank
from framework.recipe.catalogue import Catalogue
from framework.recipe.compose import compose
from framework.recipe.instantiate import instantiate
from framework.rollout.engine import EngineError, Generation, Requests
from framework.rollout.rewards.reward_sum import RewardError, RewardSum
from framework.rollout.rewards.rollouts import Rollouts
from framework.scene.types import SceneError
from framework.training.curriculum import Span
from framework.training.embedded_engine import EmbeddedEngine
from framework.training.groups import Collector, Group, quota
from framework.training.policy_module import PolicyModule
from framework.training.policy_stage import PolicyStage
from framework.training.scorable import scorable
from framework.training.stage_data import StageData
from framework.training.train import Train

GROUPS = 6
ANSWERS = 4


@dataclasses.dataclass
class Setting:
    """The tiny recipe's task with a random model; `loader` draws its prompts."""

    train: Train
    model: LanguageActionModel
    stage: PolicyStage
    loader: StepLoader
    folder: Path

    def collector(self, engine: type[EmbeddedEngine] = EmbeddedEngine, **changes: Any) -> Collector:
        stage = dataclasses.replace(self.stage, **changes)
        return Collector(stage, engine(self.model), self.loader, DataRank(), seed=7)


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setting]:
    folder = tmp_path_factory.mktemp("policy")
    few = ["sizes.policy_scenes=24", f"data.global_batch={GROUPS}", f"curriculum.stages.rl.group_size={ANSWERS}"]
    few += [
        f"paths.cache={folder}",
        f"paths.runs={folder}",
        "+curriculum.stages.rl.mixture.parts.hard.tasks.reason=1.0",
    ]
    few += ["curriculum.stages.rl.mixture.parts.hard.source.workers=1", "curriculum.stages.rl.max_new_tokens=48"]
    train = instantiate(compose(["recipe=rl_dapo", "scale=tiny", *few], Catalogue()))
    torch.manual_seed(0)
    model = train.model(special_tokens=train.data.special_tokens)
    stage = next(train.curriculum.spans()).stage
    run = StageRun("rl", 100, 0, folder)
    loader = train.data.loader(stage.mixture, model.processor, run, writes=False, cut=Prompts())
    yield Setting(train, model, stage, loader, folder)
    loader.close()


@pytest.fixture(scope="module")
def groups(setting: Setting) -> list[Group]:
    """Answers of very different lengths: some cut, some with reasons, some without."""
    found = setting.collector(filter=None).collect(0).groups
    lengths = {len(answer.tokens) for group in found for answer in group.answers}
    assert len(found) == GROUPS
    assert len(lengths) > 1
    return found


def test_one_prompt_for_all_answers_says_what_a_row_for_each_does(setting: Setting, groups: list[Group]) -> None:
    renderer, model = setting.loader.dataset.renderer, setting.model
    answers = [[a.tokens for a in group.answers] for group in groups]
    shared = collate_answers(renderer, [group.prompt for group in groups], answers)
    _, before = branch_sources(shared["branches"], shared["attention_mask"])
    rows, sources = [], []
    for group in groups:
        for answer in group.answers:
            prompt = group.prompt.rendered
            ids = torch.cat([prompt.input_ids, torch.tensor(answer.tokens)])
            rows.append(dataclasses.replace(prompt, input_ids=ids, labels=ids))
            sources.append((len(prompt.input_ids) - 1, len(ids) - 1))
    scenes = [group.prompt.scene for group in groups for _ in group.answers]
    ids_of = renderer.tokenizer.convert_tokens_to_ids
    media = ids_of("<|image_pad|>"), ids_of("<|video_pad|>")
    alone = collate(rows, scenes, ["drive"] * len(rows), renderer.tokenizer.pad_token_id, *media)
    with torch.no_grad():
        together = model(shared).flatten(0, 1)[before]
        apart = model(alone)
    expected = torch.cat([apart[row, first:last] for row, (first, last) in enumerate(sources)])
    torch.testing.assert_close(together, expected, atol=2e-5, rtol=1e-4)


def test_the_trainer_scores_what_the_engine_drew_from(setting: Setting, groups: list[Group]) -> None:
    """Temperature, grammar and banned tokens included, else the ratio of the first update is not 1."""
    micro = scorable(setting.loader, setting.model.vocabulary, groups)
    with torch.no_grad():
        hidden = setting.model(micro.batch).flatten(0, 1)[micro.before]
        scored = setting.stage.objective.score(hidden, setting.model.head, micro.taken, micro.refused)
    torch.testing.assert_close(scored.logprobs, micro.engine, atol=1e-4, rtol=1e-4)
    assert not holds(micro.refused, micro.taken).any()


def test_what_is_held_of_answers_is_what_the_plan_counts(setting: Setting, groups: list[Group]) -> None:
    micro = scorable(setting.loader, setting.model.vocabulary, groups)
    micro = dataclasses.replace(micro, old=micro.engine, reference=micro.engine)
    known = (micro.taken, micro.before, micro.refused, micro.samples, micro.engine, micro.old, micro.reference)
    chunk = micro.refused[: setting.stage.objective.chunk]
    held = [*known, spelled_out(chunk, 0, setting.model.vocabulary)]
    counted = setting.stage.batch_bytes(1e9, 0.0, len(micro.taken), setting.model.vocabulary)
    assert counted == sum(tensor.nbytes for tensor in held if tensor is not None)


def test_the_same_step_is_sampled_again_and_another_is_not(setting: Setting, groups: list[Group]) -> None:
    def sampled(step: int) -> list[tuple[int, ...]]:
        collector = setting.collector(filter=None)
        prompts = [group.prompt for group in groups]
        return [a.tokens for part in collector.engine.generate(collector._requests(prompts, step)) for a in part]

    first = [answer.tokens for group in groups for answer in group.answers]
    assert sampled(0) == first
    assert sampled(1) != first


def test_groups_left_over_train_in_the_next_step(setting: Setting, groups: list[Group]) -> None:
    class Half(GroupFilter):
        def __call__(self, rewards: Tensor, groups: Tensor) -> Tensor:
            kept.append(len(kept) % 2 == 0)
            return torch.tensor([kept[-1]])

    kept: list[bool] = []
    collector = setting.collector(filter=Half())
    collector.surplus = groups[:2]
    first = collector.collect(3)
    assert first.groups[:2] == groups[:2]
    assert len(first.groups) == GROUPS
    assert first.shares == first.metrics["rl/rounds"] == 2
    assert first.metrics["rl/kept"] == pytest.approx(0.5)
    left = list(collector.surplus)
    assert len(left) == 2
    assert collector.collect(4).groups[:2] == left


class Apart(EmbeddedEngine):
    """Answers ahead, as an engine with weights of its own does."""

    def begin(self, requests: Requests) -> Callable[[], list[list[Generation]]]:
        found = self.generate(requests)
        return lambda: found


def test_what_was_drawn_ahead_is_a_step_old_and_another_attempts_too(setting: Setting) -> None:
    def collector(*shares: list[Sample]) -> Collector:
        made = setting.collector(filter=None, ahead=True, engine=Apart)
        made.shares = iter(shares) if shares else made.shares
        return made

    first = collector()
    first.engine.sync([], 5)
    first.begin(6)
    first.ahead.settle()
    kept = json.loads(json.dumps(first.ahead.state()))
    first.engine.sync([], 6)
    found = first.collect(6)
    assert {answer.version for group in found.groups for answer in group.answers} == {5}
    assert found.metrics["answers/staleness"] == 1
    assert found.shares == 1
    assert first.ahead.taken() is None, "what was drawn ahead is used once"

    prompts = [group.prompt for group in found.groups]
    second, third = collector(prompts), collector(prompts[::-1])
    for resumed in (second, third):
        resumed.engine.sync([], 6)
        resumed.resume(kept, 6)
    assert [group.answers for group in second.collect(6).groups] == [group.answers for group in found.groups]
    others = third.collect(6)
    assert {answer.version for group in others.groups for answer in group.answers} == {6}, "other prompts: drawn anew"


def test_an_engine_without_weights_of_its_own_cannot_answer_ahead(setting: Setting) -> None:
    with pytest.raises(ValueError, match=r"stage\.ahead: EmbeddedEngine has no weights of its own"):
        setting.collector(ahead=True)


def test_state_of_a_group_is_read_back_with_its_prompt(setting: Setting, groups: list[Group]) -> None:
    for group in groups:
        again = Group.of(json.loads(json.dumps(group.state(setting.loader))), setting.loader)
        assert again is not None
        assert again.answers == group.answers
        assert torch.equal(again.rewards, group.rewards)
        assert torch.equal(again.prompt.rendered.input_ids, group.prompt.rendered.input_ids)


def test_answers_to_another_prompt_are_dropped(
    setting: Setting, groups: list[Group], caplog: pytest.LogCaptureFixture
) -> None:
    """A stream before it moves a prompt to another index; other data or tasks make it another prompt."""
    hard = setting.stage.mixture.parts["hard"]
    source = WorldShards(str(setting.folder), scenes=24, seed=7, kinds=hard.source.kinds, workers=1)  # type: ignore[attr-defined]
    reasons = dataclasses.replace(hard, tasks={"reason": 1.0})
    kept = [json.loads(json.dumps(group.state(setting.loader))) for group in groups]

    def again(**parts: Part) -> list[Group | None]:
        feed, run = setting.train.data, StageRun("rl", 100, 0, setting.folder)
        loader = feed.loader(Mixture(parts), setting.model.processor, run, writes=False, cut=Prompts())
        return [Group.of(state, loader) for state in kept]

    moved = again(other=dataclasses.replace(hard, source=source), hard=hard)
    for group, found in zip(groups, moved, strict=True):
        assert found is not None
        assert found.prompt.address == group.prompt.address._replace(stream=1)  # type: ignore[union-attr]
        assert torch.equal(found.prompt.rendered.input_ids, group.prompt.rendered.input_ids)
    assert not caplog.records
    for gone in (again(hard=dataclasses.replace(hard, source=source)), again(other=hard)):
        assert gone == [None] * GROUPS
    assert "stream hard: the mixture has another prompt, or none" in caplog.text
    others = again(hard=reasons)
    assert [found is None for found in others] == [group.prompt.task != "reason" for group in groups]


def test_a_rank_that_answered_nothing_idles_on_anothers_group(
    setting: Setting, groups: list[Group], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a resume, with nothing left over for this rank and none of its prompts chosen."""
    collector = setting.collector(filter=None)
    collector.place = DataRank(1, 2)

    def gather(mine: Any, place: DataRank) -> list[Any]:
        others = {bool: True, int: GROUPS}
        return [others.get(type(mine), groups[0]), mine]

    monkeypatch.setattr("framework.training.groups.gathered", gather)
    found = collector.collect(0)
    assert found.groups == []
    assert found.shares == 0, "nothing is drawn or answered for it"
    assert collector.spare is groups[0]
    own = setting.collector(filter=None)
    own.place = DataRank(1, 2)
    own.surplus = groups[1:]
    own.collect(0)
    assert own.spare is groups[1]


def test_rewards_that_fail_more_often_than_the_budget_allows_end_the_step(setting: Setting) -> None:
    def broken(rollouts: Rollouts) -> Tensor:
        raise KeyError("lanes")

    rewards = RewardSum({"broken": broken}, {"broken": 1.0}, error_budget=GROUPS * ANSWERS - 1)
    with pytest.raises(RewardError, match=f"failed {GROUPS * ANSWERS} times"):
        setting.collector(rewards=rewards).collect(0)


def test_when_no_group_is_good_the_run_ends_by_name(setting: Setting) -> None:
    with pytest.raises(SceneError, match="2 rounds of 6 prompts gave no group"):
        setting.collector(filter=GroupFilter(floor=1e9), rounds=2).collect(0)


@pytest.mark.parametrize(
    ("ready", "wanted", "expected"),
    [([5, 5], 6, [3, 3]), ([1, 9], 6, [1, 5]), ([2, 2], 6, [2, 2]), ([4, 0, 4], 5, [3, 0, 2])],
)
def test_ranks_share_what_is_ready(ready: list[int], wanted: int, expected: list[int]) -> None:
    assert quota(ready, wanted) == expected


class Recorded(torch.optim.SGD):
    """Keeps the gradients that it was given."""

    def step(self, closure: Any = None) -> Any:
        if closure is not None:
            closure()
        given = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        self.gradient = torch.cat([g.flatten().double() for g in given])


def _trainer(folder: Path, steps: int) -> Trainer:
    return Trainer(
        accelerator="cpu", max_steps=steps, max_epochs=-1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder, use_distributed_sampler=False,
    )  # fmt: skip


def test_the_next_steps_answers_are_drawn_while_one_trains(setting: Setting, tmp_path: Path) -> None:
    changes = {"optimizer": Recorded, "lr": 0.0, "weight_decay": 0.0, "filter": None, "ahead": True, "engine": Apart}
    stage = dataclasses.replace(setting.stage, **changes)
    run = StageRun("rl", 100, 0, tmp_path)
    data = StageData(
        setting.train.data, stage.mixture, setting.model.processor, run, setting.train.placement, prompts=True
    )
    module, staleness = PolicyModule(setting.model, Span("rl", stage, 0, 3)), []
    train = module.training_step

    def step(batch: Any, batch_idx: int) -> dict[str, Any]:
        told = train(batch, batch_idx)
        staleness.append(told["metrics"]["answers/staleness"])
        return told

    module.training_step = step  # type: ignore[method-assign]
    _trainer(tmp_path, steps=3).fit(module, datamodule=data)
    assert staleness == [0, 1, 1]
    assert module.rank_state()["ahead"] == [], "nothing is drawn that no step trains"


def _gradient(setting: Setting, groups: list[Group], rows: int, folder: Path, **changes: Any) -> Recorded:
    """The gradient of one step on `groups`, `rows` of them in a micro-batch."""
    stage = dataclasses.replace(setting.stage, optimizer=Recorded, lr=0.0, weight_decay=0.0, clip=1e9, **changes)
    feed = dataclasses.replace(setting.train.data, micro_batch=rows)
    run = StageRun("rl", 100, 0, folder)
    data = StageData(feed, stage.mixture, setting.model.processor, run, setting.train.placement, prompts=True)
    module = PolicyModule(setting.model, Span("rl", stage, 0, 1))
    trainer = _trainer(folder, steps=1)
    started = module.on_train_start

    def start() -> None:
        started()
        module.collector.surplus = list(groups)

    module.on_train_start = start  # type: ignore[method-assign]
    trainer.fit(module, datamodule=data)
    (optimizer,) = trainer.optimizers
    assert isinstance(optimizer, Recorded)
    return optimizer


def test_a_resumed_stage_goes_on_with_what_was_left_over_and_counted(
    setting: Setting, groups: list[Group], tmp_path: Path
) -> None:
    """With enough left over nothing is sampled, so that all that is saved again was taken over."""
    stage = dataclasses.replace(setting.stage, optimizer=Recorded, lr=0.0, weight_decay=0.0)
    feed, run = setting.train.data, StageRun("rl", 100, 0, tmp_path)
    data = StageData(feed, stage.mixture, setting.model.processor, run, setting.train.placement, prompts=True)
    module = PolicyModule(setting.model, Span("rl", stage, 0, 1))
    state = {"scenarios": {"cut_in": [1.0, 2.0]}, "errors": {"imitation": 3}, "reference": False}
    surplus = [group.state(setting.loader) for group in groups]
    module.load_states(json.loads(json.dumps(state)), json.loads(json.dumps({"surplus": surplus, "ahead": []})))
    _trainer(tmp_path, steps=1).fit(module, datamodule=data)
    assert module.state() == state
    assert module.rank_state() == {"trained": surplus, "surplus": [], "ahead": []}


@pytest.fixture(scope="module")
def whole(setting: Setting, groups: list[Group], tmp_path_factory: pytest.TempPathFactory) -> Tensor:
    """The gradient of the step in one micro-batch."""
    gradient = _gradient(setting, groups, GROUPS, tmp_path_factory.mktemp("whole")).gradient
    assert float(gradient.norm()) > 1e-4
    return gradient


@pytest.mark.parametrize("rows", [1, 2, 4])
def test_micro_batches_do_not_change_the_gradient(
    setting: Setting, groups: list[Group], whole: Tensor, rows: int, tmp_path: Path
) -> None:
    gradient = _gradient(setting, groups, rows, tmp_path).gradient
    assert float((gradient - whole).norm() / whole.norm()) < 1e-5


def test_the_engine_gives_its_memory_back_before_the_update_and_gets_the_weights_after_it(
    setting: Setting, groups: list[Group], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    update = Recorded.step

    class Told(EmbeddedEngine):
        def release(self) -> None:
            told.append("release")

        def sync(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
            told.append(f"sync {version}")
            super().sync(weights, version)

    def step(self: Recorded, closure: Any = None) -> None:
        update(self, closure)
        told.append("update")

    monkeypatch.setattr(Recorded, "step", step)
    _gradient(setting, groups, GROUPS, tmp_path, engine=Told)
    assert told == ["sync 0", "release", "update", "sync 1"]


def test_engines_with_other_weights_are_found_out(setting: Setting, groups: list[Group], tmp_path: Path) -> None:
    wrong = [
        dataclasses.replace(
            group,
            answers=tuple(dataclasses.replace(a, logprobs=tuple(v - 0.1 for v in a.logprobs)) for a in group.answers),
        )
        for group in groups
    ]
    with pytest.raises(EngineError, match="parity gate, step 0"):
        _gradient(setting, wrong, GROUPS, tmp_path)


def test_what_no_grammar_allows_is_not_scored(setting: Setting) -> None:
    drive = setting.train.data.tasks["drive"]
    with pytest.raises(RuntimeError, match="grammar"):
        refused_tokens(setting.model.processor.tokenizer, [drive.grammar], [(5, 5)], setting.model.vocabulary)


def test_after_going_back_the_engine_answers_with_the_weights_of_then(setting: Setting) -> None:
    module = PolicyModule(setting.model, Span("rl", setting.stage, 0, 1))
    module.collector = setting.collector()
    synced: dict[int, set[str]] = {}

    class Engine:
        def sync(self, weights: Iterator[tuple[str, Tensor]], version: int) -> None:
            synced[version] = {name for name, _ in weights}

    module.collector.engine = Engine()  # type: ignore[assignment]
    module.on_went_back(7)
    assert synced == {7: set(setting.model.backbone.state_dict())}
