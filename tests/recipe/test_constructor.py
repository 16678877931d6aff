"""What a constructor refuses is found from its source, with the message that it would raise."""

from __future__ import annotations

import itertools
from importlib import import_module
from typing import Any

import pytest

from framework.recipe.constructor import refusal
from framework.recipe.signature import locate


def real(target: str, arguments: dict[str, Any]) -> str | None:
    """The error that the imported class raises."""
    module, _, name = target.rpartition(".")
    try:
        getattr(import_module(module), name)(**arguments)
    except ValueError as error:
        return str(error)
    return None


CASES: list[tuple[str, dict[str, list[Any]]]] = [
    ("framework.objective.group_filter.GroupFilter", {"success_low": [None, 0.2], "success_high": [None, 0.1, 0.8]}),
    ("framework.objective.advantages.GroupRelative", {"epsilon": [0, 1e-6], "floor": [0, 1e-3]}),
    ("framework.objective.advantages.GroupDecoupled", {"epsilon": [0, 1e-6], "floor": [0, 1e-3]}),
    ("framework.objective.kl.KLPenalty", {"weight": [0.1], "estimator": ["k1", "k3"], "place": ["loss", "reward"]}),
    ("framework.objective.policy_loss.CISPO", {"high": [-1.0, 4.0], "low": [None, 0.5, 2.0]}),
    ("framework.simulation.rewards.answers.Overlong", {"limit": [8, 64], "buffer": [0, 16]}),
    ("framework.parallel.precision.Precision", {"weights": ["bfloat16", "float32"], "arithmetic": ["float32"]}),
    ("framework.parallel.recompute.Recompute", {"kept": [{}, {"attention": 1}, {"convolution": 1}, {"linear": 0}]}),
    ("framework.model.codecs.control_tokens.ControlTokenCodec", {"bins": [64, 65]}),
    ("framework.data.sources.world.WorldShards", {
        "cache": ["x"], "scenes": [0, 4], "seed": [0], "kinds": ["train", "trian", ["curve"], ["curve", "cuve"]]}),
    ("framework.data.stream.mixture.Shards", {"local": [None, "x"], "remote": [None, "s3://x"], "cache": [None, "y"]}),
    ("framework.training.rl.alarms.Alarm", {"metric": ["m"], "above": [None, 1.0], "below": [None, 0.0]}),
]  # fmt: skip


@pytest.mark.parametrize(("target", "choices"), CASES)
def test_agrees_with_the_imported_class(target: str, choices: dict[str, list[Any]]) -> None:
    outcomes = set()
    for values in itertools.product(*choices.values()):
        arguments = dict(zip(choices, values, strict=True))
        found = refusal(locate(target), arguments)
        wanted = real(target, arguments)
        assert (found and found.message) == wanted, arguments
        outcomes.add(wanted is None)
    assert outcomes == {True, False}


def component(target: str, **arguments: Any) -> dict[str, Any]:
    return {"_target_": f"framework.{target}", **arguments}


def test_components_inside_a_component_are_followed() -> None:
    part = component("data.stream.mixture.Part", source=component("x.Y"), tasks={"drive": 1.0}, passes=1.0, samples=3)
    mixture = locate("framework.data.stream.mixture.Mixture")
    assert refusal(mixture, {"parts": {"a": part}}).message == (  # type: ignore[union-attr]
        "mixture.parts.a: passes and samples are given; a stream's amount is one of them"
    )
    assert refusal(mixture, {"parts": {"a": part | {"samples": None}}}) is None
    assert refusal(mixture, {"parts": {}}).arguments == ("parts",)  # type: ignore[union-attr]


def test_a_limit_that_two_components_share_is_compared() -> None:
    overlong = component("simulation.rewards.answers.Overlong", limit=32, buffer=16)
    rewards = component("simulation.rewards.reward_sum.RewardSum", components={"o": overlong}, weights={"o": 1.0})
    stage = {"group_size": 8, "max_new_tokens": 64, "rewards": rewards}
    found = refusal(locate("framework.training.rl.stage.PolicyStage"), stage)
    assert found is not None
    assert "limit: 32 tokens, and stage.max_new_tokens allows 64" in found.message
    assert refusal(locate("framework.training.rl.stage.PolicyStage"), stage | {"max_new_tokens": 32}) is None


def test_values_that_are_not_known_refuse_nothing() -> None:
    assert refusal(locate("framework.objective.policy_loss.PPOClip"), {"low": "???", "high": 0.2}) is None
    assert refusal(locate("framework.training.stages.Curriculum"), {}) is None


TASKS = ("drive", "detect")


def train(**changes: Any) -> dict[str, Any]:
    """The arguments of a training, as far as they are compared."""
    part = component("data.stream.mixture.Part", source=component("x.Y"), tasks=changes.get("trained", {"drive": 1.0}))
    stage = component(
        "training.stages.SupervisedStage",
        mixture=component("data.stream.mixture.Mixture", parts={"a": part}),
        global_batch=changes.get("global_batch"),
    )
    data = component("data.pipeline.DataPipeline", tasks=dict.fromkeys(TASKS), global_batch=16, canonical_nodes=8)
    asked = component("training.evaluators.tasks.TaskEvaluator", tasks=changes.get("asked", {"drive": 64}))
    driven = component("training.evaluators.open_loop.OpenLoopEvaluator", task=changes.get("driven", "drive"))
    curriculum = component("training.stages.Curriculum", stages={"one": stage | {"steps": 1}})
    return {"curriculum": curriculum, "data": data, "evals": {"asked": asked, "driven": driven}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, None),
        ({"global_batch": 32}, None),
        (
            {"global_batch": 12},
            "curriculum.stages.one: its steps of 12 samples do not divide over",
        ),
        ({"trained": {"drvie": 1.0}}, "curriculum.stages.one.mixture.parts.a.tasks: ['drvie'] are no tasks"),
        ({"asked": {"detekt": 8}}, "evals.asked.tasks: ['detekt'] are no tasks of the data; there are ['detect', 'dri"),
        ({"driven": "reason"}, "evals.driven.task: ['reason'] are no tasks"),
    ],
)
def test_names_and_batches_of_a_training_are_compared(changes: dict[str, Any], message: str | None) -> None:
    found = refusal(locate("framework.training.tasks.train.Train"), train(**changes))
    assert (found is None) if message is None else (found is not None and found.message.startswith(message))
