"""What people read: the tree with origins, and differences."""

from __future__ import annotations

import re

import yaml

from framework.recipe.catalogue import Catalogue
from framework.recipe.compose import compose
from framework.recipe.show import compared, diff, golden, parent_of, show
from tests.recipe.own_recipes import HEADER, Written


def test_show_is_yaml_with_an_origin_behind_every_value(catalogue: Catalogue) -> None:
    text = show(compose(["recipe=toy_fast", "run.seed=3", "task.stages=[{a: 1}]"], catalogue))
    tree = yaml.safe_load(text)
    assert tree["run"] == {"name": "toy_fast", "seed": 3, "folder": "runs/toy_fast"}
    assert tree["task"]["optimizer"] == "${optimizer}"
    assert tree["task"]["stages"] == [{"a": 1}]
    lines = {line.partition(":")[0].strip(): line.partition("# ")[2] for line in text.splitlines()}
    assert lines["seed"] == "command line"
    assert lines["lr"] == "recipes/toy_fast.yaml:7"
    assert all("#" in line for line in text.splitlines() if line.strip() != "-" and not line.rstrip().endswith(":"))


def test_golden_is_the_same_without_origins(catalogue: Catalogue) -> None:
    composition = compose(["recipe=toy"], catalogue)
    assert yaml.safe_load(golden(composition)) == yaml.safe_load(show(composition))
    assert "#" not in golden(composition)


def test_diff_against_parent_names_only_what_changes(catalogue: Catalogue) -> None:
    new = compose(["recipe=toy_fast"], catalogue)
    assert parent_of(new) == "toy"
    assert diff(compose(["recipe=toy"], catalogue), new).splitlines() == [
        "optimizer.lr: 0.001 -> 0.01   (recipes/toy_fast.yaml:7)",
    ]


def test_diff_against_the_base(catalogue: Catalogue) -> None:
    new = compose(["recipe=toy"], catalogue)
    assert parent_of(new) is None
    found = diff(compose(["~recipe"], catalogue), new)
    assert "task.steps: (absent) -> 3   (recipes/toy.yaml:8)" in found
    assert "optimizer.lr" not in found


def test_a_curriculum_is_compared_with_the_stages_of_its_recipes() -> None:
    words = ["recipe=curriculum", "curriculum.stages.rl.steps=7", "curriculum.recipes=[sft_broad,rl_dapo]"]
    title, old, new = compared(words, Catalogue())
    assert title == "the base with sft_broad, rl_dapo"
    lines = diff(old, new).splitlines()
    assert [line for line in lines if line.startswith("curriculum.")] == [
        "curriculum.stages.rl.steps: 500 -> 7   (command line)"
    ]


def test_a_component_that_is_gone_is_one_line() -> None:
    old, new = compose(["recipe=supervised"]), compose(["recipe=supervised", "curriculum.recipes=[sft_broad]"])
    (line,) = [line for line in diff(old, new).splitlines() if "quality" in line]
    assert re.fullmatch(r"curriculum\.stages\.quality: \d+ values -> \(absent\)   \(not set\)", line)


def test_another_source_is_a_difference() -> None:
    other = compose(["recipe=sft_quality", "stage.data.hard.source=${sources.world_train}"])
    key = "curriculum.stages.quality.mixture.parts.hard.source"
    line = f"{key}: ${{sources.world_hard}} -> ${{sources.world_train}}   (command line)\n"
    assert diff(compose(["recipe=sft_quality"]), other) == line


def test_a_component_that_is_switched_off_is_one_line() -> None:
    old, new = compose(["recipe=rl_dapo"]), compose(["recipe=rl_dapo", "stage/filter=none"])
    expected = "curriculum.stages.rl.filter: 6 values -> null   (conf/stage/filter/none.yaml:3)\n"
    assert diff(old, new) == expected


def test_a_list_that_was_empty_is_told_by_its_entries(catalogue: Catalogue) -> None:
    empty, filled = (compose(["recipe=toy", f"task.stages={stages}"], catalogue) for stages in ("[]", "[{a: 1}]"))
    assert diff(empty, filled) == "task.stages.0.a: (absent) -> 1   (command line)\n"


def test_diff_of_a_composition_with_itself_is_empty(catalogue: Catalogue) -> None:
    assert diff(compose(["recipe=toy"], catalogue), compose(["recipe=toy"], catalogue)) == ""


def test_a_stage_by_another_name_is_compared_key_by_key(written: Written) -> None:
    stage = "stage: {name: polish, steps: 500}\n"
    _, old, new = compared(
        ["recipe=polished"], written("polished", f"{HEADER}defaults: [sft_quality, _self_]\n{stage}")
    )
    assert diff(old, new).splitlines() == [
        "stage.name: quality -> polish   (recipes/polished.yaml:3)",
        "curriculum.stages.polish.steps: 2000 -> 500   (recipes/polished.yaml:3)",
    ]


def test_another_recipe_with_a_stage_of_another_name_is_compared_with_it() -> None:
    lines = diff(compose(["recipe=sft_broad"]), compose(["recipe=rl_dapo"])).splitlines()
    assert lines[0].startswith("stage.name: broad -> rl   (conf/stage/rl.yaml:")
    assert not any("broad: " in line for line in lines[1:]), "no stage is gone as a whole"
