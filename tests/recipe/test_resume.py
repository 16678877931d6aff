"""Each value that differs from a checkpoint's is applied or refused: a test for each row of the table."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import yaml

from framework.recipe.catalogue import Catalogue
from framework.recipe.compose import compose
from framework.recipe.layers import leaves
from framework.recipe.problem import Key
from framework.recipe.resume import Point, Rule, changes, rule_of, rules

ABSENT_FROM_RECIPES = {
    "curriculum.stages.*.mixture.parts.*.source.workers": "curriculum.stages.S.mixture.parts.hard.source.workers",
    "curriculum.stages.*.lr_factors.**": "curriculum.stages.S.lr_factors.heads",
    "curriculum.stages.*.alarms.**": "curriculum.stages.S.alarms.entropy.limit",
    "curriculum.stages.*.continuation.**": "curriculum.stages.S.continuation.steps",
    "curriculum.stages.*.objective.kl": "curriculum.stages.S.objective.kl",
    "data.shuffle_block": "data.shuffle_block",
    "data.corrupt_shards": "data.corrupt_shards",
    "evals.*.source.workers": "evals.held_out.source.workers",
    "init_from": "init_from",
}
"""Values that no preset sets: the key that a user would add, with S for the stage."""


@pytest.fixture(scope="module")
def trees() -> dict[str, Any]:
    """The resolved recipes by the stage that their checkpoint is of."""
    recipes = {"quality": "supervised", "rl": "rl_grpo"}
    return {stage: compose([f"recipe={name}"], Catalogue()).tree for stage, name in recipes.items()}


def _set(tree: Any, key: Key, value: Any) -> Any:
    """A copy of `tree` with another value at `key`."""
    changed = copy.deepcopy(tree)
    node = changed if key[0] == "run" else changed["task"]
    for name in key[:-1]:
        if isinstance(node, list):
            node = node[int(name)]
            continue
        if not isinstance(node.get(name), dict | list):
            node[name] = {}
        node = node[name]
    node[int(key[-1]) if isinstance(node, list) else key[-1]] = value
    return changed


def _places(trees: dict[str, Any], rule: Rule) -> list[tuple[str, Key]]:
    """A stage and a key that the rule is about, or none."""
    of_stage = rule.pattern[:2] == ("curriculum", "stages")
    for stage, tree in trees.items():
        keys = [*(key for key, _ in leaves(tree["task"]) if key), ("run", "seed")]
        mine = [key for key in keys if rule_of(key) == rule and (not of_stage or key[2] == stage)]
        if mine:
            return [(stage, mine[0])]
    added = ABSENT_FROM_RECIPES.get(".".join(rule.pattern))
    return [] if added is None else [("rl", tuple(added.replace("S", "rl").split(".")))]


@pytest.mark.fault("a resumed run with other values")
@pytest.mark.parametrize("rule", rules(), ids=lambda rule: f"{'.'.join(rule.pattern)}-{rule.effect}")
@pytest.mark.fast_cases(20)
def test_a_row_of_the_table(trees: dict[str, Any], rule: Rule) -> None:
    ((stage, key),) = _places(trees, rule)
    old, new = trees[stage], _set(trees[stage], key, "other")
    found = changes(old, new, Point(stage, 30000))
    if rule.effect == "irrelevant":
        assert found == []
        return
    (change,) = found
    assert (change.effect, change.key) == (rule.effect, key if key[0] == "run" else ("task", *key))
    assert "now 'other'" in change.message
    assert rule.why in change.message
    assert ("start a new run" in change.message) == (rule.effect == "refused")


def test_what_no_row_names_is_refused(trees: dict[str, Any]) -> None:
    (change,) = changes(trees["rl"], _set(trees["rl"], ("data", "novelty"), 3), Point("rl", 10))
    assert change.effect == "refused"
    assert change.message.startswith("not given until step 10, now 3: no rule says")


def test_nothing_changed_says_nothing(trees: dict[str, Any]) -> None:
    stored = yaml.safe_load(yaml.safe_dump(trees["quality"]))
    assert changes(stored, trees["quality"], Point("quality", 21000)) == []


def test_a_component_that_changes_is_named_once(trees: dict[str, Any]) -> None:
    adapters = {"_target_": "framework.model.lora.LoRA", "rank": 8}
    new = _set(trees["quality"], ("model", "adapters"), adapters)
    assert [change.key for change in changes(trees["quality"], new, Point("quality", 21000))] == [
        ("task", "model", "adapters")
    ]


STAGES = ("curriculum", "stages")
BROAD, QUALITY = (*STAGES, "broad"), (*STAGES, "quality")


@pytest.mark.parametrize(
    ("key", "value", "stage", "step", "effect", "says"),
    [
        ((*BROAD, "steps"), 30000, "broad", 500, "applied", "20000 steps until step 500, now 30000"),
        ((*BROAD, "steps"), 30000, "broad", 20000, "applied", "now 30000"),
        ((*BROAD, "steps"), 400, "broad", 500, "refused", "stage broad has trained 500 steps"),
        ((*BROAD, "steps"), 30000, "quality", 20100, "refused", "stage broad has ended after 20000 steps"),
        ((*BROAD, "steps"), 10, "quality", 20100, "refused", "is of stage quality"),
        ((*BROAD, "lr"), 1.0, "quality", 20100, "refused", "stage broad has ended"),
        ((*QUALITY, "steps"), 5000, "quality", 20100, "applied", "2000 steps until step 20100, now 5000"),
        ((*QUALITY, "steps"), 50, "quality", 20100, "refused", "stage quality has trained 100 steps"),
        ((*QUALITY, "steps"), 5000, "broad", 500, None, ""),
        ((*QUALITY, "lr"), 1.0, "broad", 500, None, ""),
        (("curriculum", "max_steps_per_stage"), 100, "quality", 20100, "refused", "stage broad has ended"),
        (("curriculum", "max_steps_per_stage"), 100000, "quality", 20100, None, ""),
    ],
)
def test_lengths_and_stages_that_have_ended_or_not_started(
    trees: dict[str, Any], key: Key, value: Any, stage: str, step: int, effect: str | None, says: str
) -> None:
    found = changes(trees["quality"], _set(trees["quality"], key, value), Point(stage, step))
    assert {change.effect for change in found} >= ({effect} if effect else set())
    assert bool(found) == bool(effect)
    assert any(says in change.message for change in found) or not says


def _reordered(tree: Any, *names: str) -> Any:
    changed = copy.deepcopy(tree)
    stages = changed["task"]["curriculum"]["stages"]
    changed["task"]["curriculum"]["stages"] = {name: stages.get(name, stages["broad"]) for name in names}
    return changed


@pytest.mark.fault("a stage from another's checkpoint")
@pytest.mark.parametrize(
    ("names", "stage", "allowed"),
    [
        (("quality", "broad"), "quality", False),
        (("quality", "broad"), "broad", False),
        (("quality",), "quality", False),
        (("new", "broad", "quality"), "broad", False),
        (("broad", "new", "quality"), "quality", False),
        (("broad", "new", "quality"), "broad", True),
        (("broad",), "broad", True),
        (("broad", "quality", "new"), "quality", True),
    ],
)
def test_stages_added_removed_or_reordered(
    trees: dict[str, Any], names: tuple[str, ...], stage: str, allowed: bool
) -> None:
    found = changes(trees["quality"], _reordered(trees["quality"], *names), Point(stage, 20000))
    assert [change.effect for change in found] == ([] if allowed else ["refused"])
    assert allowed or all(name in found[0].message for name in (*names, stage))


def test_a_run_of_another_task_has_nothing_to_go_on_with(trees: dict[str, Any]) -> None:
    export = {"task": {"_target_": "framework.training.tasks.export.Export"}, "run": {"seed": 0}}
    assert changes(trees["rl"], export, Point("rl", 1)) == []
