"""Reinforcement learning, step by step: what is drawn is scored, and no split of a step changes its gradient."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from torch import Tensor

from framework.data.render.collate import collate, collate_shared_prefix
from framework.data.stream.mixture import Mixture
from framework.generation.engine import EngineError, Generation, Requests
from framework.model.codecs.grammar import compute_banned_mask
from framework.model.shared_prefix import answer_token_positions
from framework.objective.bitmask import bitmask_contains, unpack_bitmask
from framework.training.datamodule import StageData
from framework.training.rl.actions import TokenActions, check_sampled, token_actions
from framework.training.rl.engine.embedded import EmbeddedEngine
from framework.training.rl.module import PolicyModule
from framework.training.rl.policy_batch import policy_batch
from framework.training.rl.prompt_state import group_state
from framework.training.rl.rollout import RolloutGroup
from framework.training.stages import StageRange
from tests.training.device_reads import DeviceReads
from tests.training.rl.engine.vllm_stand_in import weights_of
from tests.training.rl.policy_setting import GROUPS, Apart, Setting


@pytest.mark.slow
def test_one_prompt_for_all_answers_says_what_a_row_for_each_does(setting: Setting, groups: list[RolloutGroup]) -> None:
    special, model = setting.loader.renderer.special_ids, setting.model
    answers = [[a.tokens for a in group.rollouts] for group in groups]
    shared = collate_shared_prefix([group.prompt.sample for group in groups], answers, special)
    _, before = answer_token_positions(shared["shared_prefix"], shared["attention_mask"])
    rows, sources = [], []
    for group in groups:
        for answer in group.rollouts:
            prompt = group.prompt.sample.rendered
            ids = torch.cat([prompt.input_ids, torch.tensor(answer.tokens)])
            rendered = dataclasses.replace(prompt, input_ids=ids, labels=ids)
            rows.append(group.prompt.sample._replace(rendered=rendered))
            sources.append((len(prompt.input_ids) - 1, len(ids) - 1))
    alone = collate(rows, special)
    with torch.no_grad():
        together = model(shared).flatten(0, 1)[before]
        apart = model(alone)
    expected = torch.cat([apart[row, first:last] for row, (first, last) in enumerate(sources)])
    torch.testing.assert_close(together, expected, atol=2e-5, rtol=1e-4)


@pytest.mark.slow
def test_the_trainer_scores_what_the_engine_drew_from(setting: Setting, groups: list[RolloutGroup]) -> None:
    """Temperature, grammar and banned tokens included, else the ratio of the first update is not 1."""
    micro = policy_batch(groups, setting.loader, setting.model.vocabulary)
    actions = token_actions(groups, setting.loader, setting.model.vocabulary)[1]
    with torch.no_grad():
        hidden = setting.model(micro.batch).flatten(0, 1)[actions.source_positions]
        scored = setting.stage.objective.score(hidden, setting.model.head, actions.target_ids, actions.banned_mask)
        of_batch = micro.actions.score(setting.model, micro.batch, setting.stage.objective)
    torch.testing.assert_close(scored.logprobs, micro.engine_logprobs, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(of_batch.logprobs, micro.engine_logprobs, atol=1e-4, rtol=1e-4)
    assert not bitmask_contains(actions.banned_mask, actions.target_ids).any()


@pytest.mark.slow
def test_a_banned_token_that_was_taken_is_named(setting: Setting, groups: list[RolloutGroup]) -> None:
    actions = token_actions(groups, setting.loader, setting.model.vocabulary)[1]
    check_sampled(actions.target_ids, actions.banned_mask)
    token = int(actions.target_ids[0])
    actions.banned_mask[0, token // 32] |= 1 << token % 32
    with pytest.raises(ValueError, match=rf"tokens \[{token}\] were sampled and are banned"):
        check_sampled(actions.target_ids, actions.banned_mask)


@pytest.mark.slow
def test_what_is_held_of_answers_is_what_the_plan_counts(setting: Setting, groups: list[RolloutGroup]) -> None:
    micro = policy_batch(groups, setting.loader, setting.model.vocabulary)
    micro = dataclasses.replace(micro, old_logprobs=micro.engine_logprobs, reference_logprobs=micro.engine_logprobs)
    actions = micro.actions
    assert isinstance(actions, TokenActions)
    known = (
        actions.target_ids,
        actions.source_positions,
        actions.banned_mask,
        micro.samples,
        micro.engine_logprobs,
        micro.old_logprobs,
        micro.reference_logprobs,
    )
    chunk = actions.banned_mask[: setting.stage.objective.chunk]
    held = [*known, unpack_bitmask(chunk, 0, setting.model.vocabulary)]
    counted = setting.stage.batch_bytes(1e9, 0.0, len(actions.target_ids), setting.model.vocabulary)
    assert counted == sum(tensor.nbytes for tensor in held if tensor is not None)


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


def _data(setting: Setting, mixture: Mixture, folder: Path, **changes: Any) -> StageData:
    """The stage's prompts."""
    pipeline = dataclasses.replace(setting.stage.pipeline(setting.train.data), **changes)
    where: dict[str, Any] = {"stage": "rl", "samples": 100, "seed": 0, "folder": folder, "prompts": True}
    return StageData(pipeline, mixture, setting.model.processor, setting.train.parallel, **where)


def _ahead(setting: Setting, folder: Path, engine: type[Apart] = Apart) -> tuple[PolicyModule, list[dict[str, float]]]:
    """Three steps with asynchronous rollouts, and the metrics of each."""
    changes = {
        "optimizer": Recorded,
        "lr": 0.0,
        "weight_decay": 0.0,
        "filter": None,
        "async_rollout": True,
        "sampler": engine,
    }
    stage = dataclasses.replace(setting.stage, **changes)
    data = _data(setting, stage.mixture, folder)
    module, told = PolicyModule(setting.model, StageRange("rl", stage, 0, 3)), []
    train = module.training_step

    def step(batch: Any, batch_idx: int) -> dict[str, Any]:
        done = train(batch, batch_idx)
        told.append(done["metrics"])
        return done

    module.training_step = step  # type: ignore[method-assign]
    _trainer(folder, steps=3).fit(module, datamodule=data)
    return module, told


@pytest.mark.slow
@pytest.mark.guarantee(
    "With `async_rollout`, answers are sampled while the previous step trains, and their age is reported"
)
def test_the_next_steps_answers_are_sampled_while_one_trains(setting: Setting, tmp_path: Path) -> None:
    module, told = _ahead(setting, tmp_path)
    assert [metrics["answers/staleness"] for metrics in told] == [0, 1, 1]
    assert [metrics.get("policy/stale_share", 0.0) for metrics in told] == [0, 1, 1]
    assert all(metrics["policy/engine_error"] < 1e-4 for metrics in told), "nothing is compared with the engine"
    assert module.rank_state()["ahead"] == [], "nothing is drawn that no step trains"


@pytest.mark.slow
def test_engines_with_other_weights_are_found_out_asynchronously_too(setting: Setting, tmp_path: Path) -> None:
    """The answers of the first step are right; asynchronous rollouts can't be compared when they are trained."""

    class Wrong(Apart):
        def generate(self, requests: Requests) -> list[list[Generation]]:
            answers = super().generate(requests)
            off = 0.1 * (self.version > 0)
            return [
                [dataclasses.replace(a, logprobs=tuple(v - off for v in a.logprobs)) for a in group]
                for group in answers
            ]

    with pytest.raises(EngineError, match="logprob gate, step 1"):
        _ahead(setting, tmp_path, Wrong)


def _gradient(setting: Setting, groups: list[RolloutGroup], rows: int, folder: Path, **changes: Any) -> Any:
    """The gradient of one step on `groups`, `rows` of them in a micro-batch."""
    given = {"optimizer": Recorded, "lr": 0.0, "weight_decay": 0.0, "clip": 1e9, **changes}
    stage = dataclasses.replace(setting.stage, **given)
    data = _data(setting, stage.mixture, folder, micro_batch=rows)
    module = PolicyModule(setting.model, StageRange("rl", stage, 0, 1))
    trainer = _trainer(folder, steps=1)
    started = module.on_train_start

    def start() -> None:
        started()
        module.collector.surplus = list(groups)

    module.on_train_start = start  # type: ignore[method-assign]
    trainer.fit(module, datamodule=data)
    optimizer: Any = trainer.optimizers[0]
    return optimizer


def test_a_resumed_stage_goes_on_with_what_was_left_over_and_counted(
    setting: Setting, groups: list[RolloutGroup], tmp_path: Path
) -> None:
    """With enough left over nothing is sampled, so that all that is saved again was taken over."""
    stage = dataclasses.replace(setting.stage, optimizer=Recorded, lr=0.0, weight_decay=0.0)
    data = _data(setting, stage.mixture, tmp_path)
    module = PolicyModule(setting.model, StageRange("rl", stage, 0, 1))
    prompt = {"stream": "gone", "data": "d", "turn": 0, "sample": 1, "tokens": 2}
    kept = {"scene": [prompt, 1.0, 4.0, 0]}
    state = {"scenarios": {"cut_in": [1.0, 2.0]}, "replay": kept, "errors": {"imitation": 3}, "reference": False}
    surplus = [group_state(group, setting.loader.mixture) for group in groups]
    module.load_states(json.loads(json.dumps(state)), json.loads(json.dumps({"surplus": surplus, "ahead": []})))
    _trainer(tmp_path, steps=1).fit(module, datamodule=data)
    assert module.state() == state
    assert module.rank_state() == {"trained": surplus, "surplus": [], "ahead": []}


@pytest.mark.slow
def test_updates_read_nothing(
    setting: Setting, groups: list[RolloutGroup], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scoring before the first of two updates, and both; the metrics are read with those of the next step."""
    reads = DeviceReads()
    for name in ("_score", "_update", "_numbers"):
        monkeypatch.setattr(PolicyModule, name, _counted(reads, getattr(PolicyModule, name)))
    fused = functools.partial(torch.optim.AdamW, fused=True)
    _gradient(setting, groups, 2, tmp_path, optimizer=fused, num_minibatches=2)
    assert not +reads.counts


def _counted(reads: DeviceReads, method: Callable[..., Any]) -> Callable[..., Any]:
    def counted(*given: Any, **named: Any) -> Any:
        if reads.entered:
            return method(*given, **named)
        with reads:
            return method(*given, **named)

    return counted


@pytest.fixture(scope="module")
def whole(setting: Setting, groups: list[RolloutGroup], tmp_path_factory: pytest.TempPathFactory) -> Tensor:
    """The gradient of the step in one micro-batch."""
    gradient = _gradient(setting, groups, GROUPS, tmp_path_factory.mktemp("whole")).gradient
    assert float(gradient.norm()) > 1e-4
    return gradient


@pytest.mark.parametrize("rows", [1, 2, 4])
@pytest.mark.fast_cases(1)
def test_micro_batches_do_not_change_the_gradient(
    setting: Setting, groups: list[RolloutGroup], whole: Tensor, rows: int, tmp_path: Path
) -> None:
    gradient = _gradient(setting, groups, rows, tmp_path).gradient
    assert float((gradient - whole).norm() / whole.norm()) < 1e-5


@pytest.mark.guarantee("A server that shares the trainer's GPUs sleeps during the update")
def test_the_engine_gives_its_memory_back_before_the_update_and_gets_the_weights_after_it(
    setting: Setting, groups: list[RolloutGroup], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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
    _gradient(setting, groups, GROUPS, tmp_path, sampler=Told)
    assert told == ["sync 0", "release", "update", "sync 1"]


def test_engines_with_other_weights_are_found_out(setting: Setting, groups: list[RolloutGroup], tmp_path: Path) -> None:
    wrong = [
        dataclasses.replace(
            group,
            rollouts=tuple(dataclasses.replace(a, logprobs=tuple(v - 0.1 for v in a.logprobs)) for a in group.rollouts),
        )
        for group in groups
    ]
    with pytest.raises(EngineError, match="logprob gate, step 0"):
        _gradient(setting, wrong, GROUPS, tmp_path)


def test_where_the_policys_own_numbers_are_not_finite_the_engine_is_not_to_blame(
    setting: Setting, groups: list[RolloutGroup]
) -> None:
    micro = policy_batch(groups, setting.loader, setting.model.vocabulary)
    logprobs = micro.engine_logprobs.clone()
    logprobs[:2] = torch.nan
    assert micro.logprob_gap(logprobs, 0).tolist() == [0, len(logprobs) - 2]
    assert micro.logprob_gap(logprobs, 1).tolist() == [0, 0], "older answers say nothing of the engine"


def test_what_no_grammar_allows_is_not_scored(setting: Setting) -> None:
    drive = setting.train.data.tasks["drive"]
    with pytest.raises(RuntimeError, match="grammar"):
        compute_banned_mask(setting.model.processor.tokenizer, [drive.grammar], [(5, 5)], setting.model.vocabulary)


def test_after_going_back_the_engine_answers_with_the_weights_of_then(setting: Setting) -> None:
    module = PolicyModule(setting.model, StageRange("rl", setting.stage, 0, 1))
    module.collector = setting.collector()
    synced: dict[int, set[str]] = {}

    class Engine:
        def sync(self, weights: Iterator[tuple[str, Tensor]], version: int) -> None:
            synced[version] = {name for name, _ in weights}

    module.collector.engine = Engine()  # type: ignore[assignment]
    module.on_rollback(7)
    assert synced == {7: {name for name, _ in weights_of(setting.model)}}
