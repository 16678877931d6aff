"""Golden recipes of the tree before the redesign, read through the rename table, are today's."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from framework.recipe.layers import child, leaves
from framework.recipe.problem import Key, dotted
from framework.recipe.renames import renames
from framework.recipe.signature import locate

TESTS = Path(__file__).resolve().parents[1]
OLD = TESTS / "fixtures" / "old_tree" / "golden"
REFERENCE = re.compile(r"\$\{([\w.]+)\}")

BY_NAME = "data sources and evals are chosen by name, and every recipe has the sources"
EVERYWHERE = "in every recipe, so that any eval and any stage can be chosen"
NO_SIZES = "set where it is used, or by the scale where the recipe has a fixed place for it"
OF_THE_STAGE = "the stage's own, so that a curriculum which lists the recipe has it too"
OFF = "a part that is off says so"
SPLITS = "an eval judges by logs that training leaves out"
NEW_DATASETS = "datasets that the old tree could not read"
QUARANTINE = "a limit on the share of samples, once one on their number"
FOR_SEARCHES = "a search reads what it optimises from the recipe"
TABLES = "the old tree read none of one's own"
CONVERSATIONS = "the old tree trained none"
INSTRUCTIONS = "the old tree's prompts always stated the form of the answer"
NO_DEFAULT_OUTSIDE = "nothing outside the repository is a default"

OF_THE_DEMO = dict.fromkeys(
    ("model", "codecs", "data", "curriculum", "evals", "suite", "parallel", "checkpoint", "tracking"),
    "the recipe derived from the demo; the task reads the run's own recipe, so that the base's keys are left",
)
OF_RL = {
    f"{node}{key}": OF_THE_STAGE
    for node in ("", "task.")
    for key in ("data.global_batch", "curriculum.stages.rl.global_batch")
}
FILTERED = OF_RL | {
    f"{node}curriculum.stages.rl.filter.{key}": "groups of answers that are cut, or all the same, teach nothing"
    for node in ("", "task.")
    for key in ("max_cut_share", "min_distinct")
}
LEARNS_FASTER = {
    f"{node}{key}": "the demo points at boxes, and trains matrices by Muon, half of its samples from boxes alone"
    for node in ("", "task.")
    for key in (
        "codecs.boxes",
        "data.tasks.detect.codec",
        "model.encoders.boxes",
        *(f"evals.{name}.tasks.detect" for name in ("held_out", "zero_shot")),
        *(f"curriculum.stages.{stage}.{part}" for stage in ("broad", "quality") for part in ("steps", "optimizer")),
        *(f"curriculum.stages.broad.mixture.parts.{part}" for part in ("world", "boxes")),
        "curriculum.stages.quality.mixture.parts.hard.tasks",
    )
}
WHOLE_CURRICULUM = {
    f"{node}{key}": "the demo ends with reinforcement learning, and drives in closed loop"
    for node in ("", "task.")
    for key in ("curriculum.stages.rl", "evals.closed_loop")
}
OF_THE_TASK = {"task": "one task, which reads the run's own recipe"}

DIFFERENCES: dict[str, dict[str, str]] = {
    "*": {
        "search_metric": FOR_SEARCHES,
        "search_direction": FOR_SEARCHES,
        "paths.recordings": NO_DEFAULT_OUTSIDE,
        "paths.conversations": CONVERSATIONS,
        "paths.shards": TABLES,
        "data.quarantine": QUARANTINE,
        "task.data.quarantine": QUARANTINE,
        "instructions": INSTRUCTIONS,
        **{
            f"{node}data.tasks.{task}.instruct": INSTRUCTIONS
            for node in ("", "task.")
            for task in ("drive", "reason", "detect")
        },
        "sizes": NO_SIZES,
        "eval_defaults": NO_SIZES,
        "lidar_cells": NO_SIZES,
        "sources": BY_NAME,
        "simulator": EVERYWHERE,
        "rewards": EVERYWHERE,
        "init_from": EVERYWHERE,
        "parallel.deterministic": OFF,
        "task.parallel.deterministic": OFF,
    },
    "demo": LEARNS_FASTER | WHOLE_CURRICULUM,
    "curriculum": FILTERED,
    "rl_dapo": FILTERED,
    "rl_dr_grpo": OF_RL,
    "rl_grpo": OF_RL,
    "rl_gspo": FILTERED,
    "sft_drive": {
        f"{node}{source}.{key}": reason
        for node in ("", "task.")
        for source in ("curriculum.stages.drive.mixture.parts.recordings.source", "evals.recordings.source")
        for key, reason in (
            ("recordings", NO_DEFAULT_OUTSIDE),
            ("split", SPLITS),
            *((f"datasets.{name}", NEW_DATASETS) for name in ("kitti_raw", "kitti_tracking", "py123d", "physical_ai")),
            ("datasets.lerobot", NEW_DATASETS),
        )
    },
    "evaluate": {**OF_THE_DEMO, **OF_THE_TASK},
    "evaluate_checkpoint": {
        **OF_THE_TASK,
        "curriculum": EVERYWHERE,
        "run.name": "the other recipe's",
        "run.folder": "the other recipe's",
    },
    "export": {**OF_THE_DEMO, **OF_THE_TASK},
}
"""By recipe, each key whose value changed on purpose, and why. `*` is every recipe."""

MERGED = {"evaluate_checkpoint": "evaluate"}
"""Recipes of the old tree that have become another one."""
EVALS = {"simulated": "simulated_hard"}
"""Evals of the old tree, and the preset that each is called by now."""


def expanded(value: Any, root: Any) -> Any:
    """`value` with the mappings that it holds by reference: a golden file writes each of them once."""
    if isinstance(value, dict):
        return {name: expanded(each, root) for name, each in value.items()}
    if isinstance(value, list):
        return [expanded(each, root) for each in value]
    whole = REFERENCE.fullmatch(value) if isinstance(value, str) else None
    if whole is None:
        return value
    node = root
    for name in renames().keys.get(whole[1], whole[1]).split("."):
        node = node[name]
    return expanded(node, root)


def flat(tree: Any) -> dict[Key, Any]:
    """Every value by key. A part that is off (null) is as good as absent."""
    evals = tree.get("evals") or {}
    tree = {**tree, "evals": {EVALS.get(name, name): each for name, each in evals.items()}}
    return {key: value for key, value in leaves(expanded(tree, tree)) if value is not None}


@pytest.mark.parametrize("recipe", sorted(path.stem for path in OLD.glob("*.yaml")))
def test_golden_recipes_are_equal_key_by_key(recipe: str) -> None:
    before = flat(renames().tree(yaml.safe_load((OLD / f"{recipe}.yaml").read_text())))
    now = flat(yaml.safe_load((TESTS / "golden" / f"{MERGED.get(recipe, recipe)}.yaml").read_text()))
    explained = {**DIFFERENCES.get("*", {}), **DIFFERENCES.get(recipe, {})}
    different = {
        dotted(key): (before.get(key, "absent"), now.get(key, "absent"))
        for key in before.keys() | now.keys()
        if before.get(key, "absent") != now.get(key, "absent") and not _within(dotted(key), explained)
    }
    assert different == {}


def _within(key: str, explained: dict[str, str]) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in explained)


def test_every_renamed_target_exists() -> None:
    table = renames()
    for target in [
        *table.arguments,
        *table.removed,
        *table.values,
        *(f"{k.rpartition('.')[0]}.{v}" for k, v in table.classes.items()),
    ]:
        locate(target)


def test_a_key_with_a_dot_in_its_name_stays_whole() -> None:
    tree = {"lr_factors": {"encoders.*": 10.0}, "sizes": {"examined_rows": 4}}
    assert renames().tree(tree) == {"lr_factors": {"encoders.*": 10.0}, "sizes": {"eval_batch_size": 4}}


def test_arguments_and_values_are_renamed_wherever_the_component_lies() -> None:
    old = {"_target_": "framework.objective.correction.EngineCorrection", "beyond": "drop", "least": 0.5, "most": 5.0}
    found = renames().tree({"a": [{"b": old}]})
    assert child(found["a"], "0")["b"] == {
        "_target_": "framework.objective.correction.EngineCorrection",
        "mode": "mask",
        "min": 0.5,
        "max": 5.0,
    }
