"""A scale has the last word over recipes, the command line over both, and nobody is left to find that out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from textwrap import dedent

import pytest
import yaml

from framework.__main__ import main
from framework.recipe.catalogue import Catalogue
from framework.recipe.check import check
from framework.recipe.compose import compose
from framework.recipe.examine import findings
from framework.recipe.show import compared, diff
from framework.recipe.stored import stored
from framework.run.folder import open_run

Write = Callable[[str, str], str]


def steps(*words: str) -> dict[str, int]:
    """Each stage's steps as the curriculum trains them."""
    curriculum = compose(words).tree["task"]["curriculum"]
    limit = curriculum.get("max_steps_per_stage")
    lengths = {name: stage["steps"] for name, stage in curriculum["stages"].items()}
    return {name: count if limit is None else min(count, limit) for name, count in lengths.items()}


@pytest.mark.parametrize(
    "entry", ["- override /scale: tiny", "- /scale: tiny", "- scale: tiny", "- override /scale/stage: tiny"]
)
def test_a_scale_in_a_recipe_is_one_fault_that_says_where_it_belongs(
    catalogue: Catalogue, recipe: Write, entry: str
) -> None:
    recipe("small", f"defaults:\n  - toy\n  - _self_\n  {entry}\n")
    (problem,) = check(["recipe=small"], catalogue)[1]
    assert str(problem).startswith("recipes/small.yaml:5 defaults./scale: a recipe cannot choose a scale")
    assert str(problem).endswith("leave it out and write on the command line: scale=tiny")


def test_a_scale_among_the_values_of_a_recipe_is_told_the_same(catalogue: Catalogue, recipe: Write) -> None:
    recipe("small", "defaults: [toy, _self_]\nscale: tiny\n")
    (problem,) = check(["recipe=small"], catalogue)[1]
    assert str(problem).endswith("write on the command line: scale=tiny")


def test_what_the_scale_replaces_is_told_in_one_line(
    catalogue: Catalogue, recipe: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe("own", "defaults:\n  - toy\n  - _self_\n  - override /optimizer: adamw\nrun: {seed: 3}\n")
    note = "scale=tiny replaces: optimizer adamw -> sgd, run.seed 3 -> 7 (a value on the command line wins)"
    assert main(["check", "recipe=own", "scale=tiny"], catalogue) == 0
    assert note in capsys.readouterr().out.splitlines()
    assert main(["show", "recipe=own", "scale=tiny"], catalogue) == 0
    shown = capsys.readouterr().out
    assert f"# {note}" in shown.splitlines()
    assert yaml.safe_load(shown)["run"]["seed"] == 7
    won = compose(["recipe=own", "scale=tiny", "run.seed=4", "optimizer=adamw"], catalogue)
    assert (won.tree["run"]["seed"], won.scale_note) == (4, "")
    assert compose(["recipe=own"], catalogue).scale_note == ""


def test_a_stage_that_the_scale_ends_early_is_told() -> None:
    assert (
        "broad.steps 400 -> 10, quality.steps 80 -> 10, rl.steps 20 -> 10"
        in compose(["recipe=demo", "scale=tiny"]).scale_note
    )
    assert "rl.global_batch 128 -> 16, rl.steps 500 -> 100" in compose(["recipe=rl_dapo", "scale=tiny"]).scale_note


@pytest.mark.slow
def test_steps_of_the_command_line_win_over_the_scale() -> None:
    assert steps("recipe=rl_dapo", "scale=tiny") == {"rl": 100}
    assert steps("recipe=rl_dapo", "scale=tiny", "stage.steps=200") == {"rl": 200}
    longer = ["recipe=demo", "scale=tiny", "curriculum.stages.broad.steps=50"]
    assert steps(*longer) == {"broad": 50, "quality": 10, "rl": 10}
    assert str(compose(longer).origin(("curriculum", "stages", "quality", "steps"))).startswith("conf/scale/tiny.yaml:")
    assert steps(*longer, "curriculum.max_steps_per_stage=4") == {"broad": 4, "quality": 4, "rl": 4}
    assert steps("recipe=demo", "scale=tiny", "curriculum.stages.broad.steps=5") == {
        "broad": 5,
        "quality": 10,
        "rl": 10,
    }


def test_a_recipe_is_compared_with_its_parent_at_the_same_scale(catalogue: Catalogue) -> None:
    title, old, new = compared(["recipe=toy_fast", "scale=tiny"], catalogue)
    assert title == "toy at scale=tiny"
    assert diff(old, new) == "optimizer.lr: 0.1 -> 0.01   (recipes/toy_fast.yaml:7)\n"
    title, old, new = compared(["recipe=toy", "scale=tiny", "against=toy_fast"], catalogue)
    assert title == "toy_fast at scale=tiny"
    assert diff(old, new) == "optimizer.lr: 0.01 -> 0.1   (conf/optimizer/sgd.yaml:4)\n"
    title, old, new = compared(["recipe=toy", "scale=tiny"], catalogue)
    assert title == "the base (no recipe) at scale=tiny"
    assert "run.seed" not in diff(old, new)


def test_an_override_of_a_stored_run_reaches_what_the_task_reads(catalogue: Catalogue, tmp_path: Path) -> None:
    composition = compose(["recipe=toy", f"paths.runs={tmp_path}"], catalogue)
    with open_run(composition.tree, composition.provenance(), composition.overrides) as opened:
        folder = opened.path
    resumed = stored(folder, catalogue, [f"run={folder}", "optimizer.lr=0.7"])
    assert resumed.tree["task"]["optimizer"]["lr"] == 0.7
    assert findings(resumed) == []
    vain = stored(folder, catalogue, [f"run={folder}", "paths.runs=elsewhere"])
    (problem,) = findings(vain)
    assert str(problem).startswith("command line paths.runs: has no effect on a stored recipe")
    (folder / "provenance.json").unlink()
    (folder / "recipe.yaml").write_text(
        dedent("""\
        run: {name: a, folder: b, seed: 0}
        out: x
        task: {_target_: toy_tasks.tasks.Task, out: x, steps: 1}
        plugins: [toy_tasks]
        """)
    )
    assert stored(folder, catalogue, [f"run={folder}", "out=y"]).tree["task"]["out"] == "y", "of an older run, too"
