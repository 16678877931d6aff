"""Every value remembers the line that set it; recipes and plugins are found as Hydra groups."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from hydra.core.object_type import ObjectType
from omegaconf import OmegaConf

from framework.recipe.catalogue import Catalogue, purpose
from framework.recipe.compose import compose
from framework.recipe.examine import findings
from framework.recipe.problem import RecipeError
from framework.recipe.sources import Loader, Repository

Write = Callable[[str, str], str]


@pytest.mark.parametrize(
    ("key", "origin"),
    [
        ("optimizer.lr", "recipes/toy_fast.yaml:7"),
        ("optimizer._target_", "conf/optimizer/adamw.yaml:2"),
        ("task.optimizer.lr", "recipes/toy_fast.yaml:7"),
        ("task.steps", "recipes/toy.yaml:8"),
        ("task.out", "plugins/toy_tasks/conf/task/toy.yaml:3"),
        ("plugins.0", "recipes/toy.yaml:6"),
        ("run.seed", "command line"),
        ("run.name", "the recipe's name"),
    ],
)
def test_origins(catalogue: Catalogue, key: str, origin: str) -> None:
    composition = compose(["recipe=toy_fast", "run.seed=3"], catalogue)
    assert str(composition.origin(tuple(key.split(".")))) == origin


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("task.out=" + "[" * 400 + "]" * 400, "is nested more than 40 deep"),
        ("task.out='" + "${" * 300 + "a" + "}" * 300 + "'", "is nested more than 40 deep"),
        ("run.seed=" + "9" * 5_000, "a number of 5000 characters"),
    ],
)
def test_a_value_of_the_command_line_that_nobody_could_mean_is_one_problem(
    catalogue: Catalogue, word: str, message: str
) -> None:
    with pytest.raises(RecipeError) as caught:
        compose(["recipe=toy", word], catalogue)
    (problem,) = caught.value.problems
    assert message in problem.message


def test_a_list_is_replaced_with_its_origins(catalogue: Catalogue, recipe: Write) -> None:
    recipe("long", "defaults: [toy, _self_]\ntask:\n  stages: [{a: 1}, {a: 2}]\n")
    recipe("short", "defaults: [long, _self_]\ntask:\n  stages:\n    - a: 3\n")
    composition = compose(["recipe=short"], catalogue)
    assert composition.raw["task"]["stages"] == [{"a": 3}]
    assert str(composition.origin(("task", "stages", "0", "a"))) == "recipes/short.yaml:5"
    assert ("task", "stages", "1") not in composition.origins


def test_the_scale_has_the_last_word(catalogue: Catalogue) -> None:
    composition = compose(["recipe=toy", "scale=tiny"], catalogue)
    assert composition.config.optimizer._target_ == "torch.optim.SGD"
    assert composition.config.run.seed == 7
    assert composition.config.run.folder == "runs/toy-tiny"


def test_a_default_may_name_another_choice(catalogue: Catalogue, recipe: Write) -> None:
    recipe("named", "defaults:\n  - toy\n  - /task@spare: ${task}\n  - _self_\n")
    composition = compose(["recipe=named"], catalogue)
    assert composition.raw["spare"]["out"] == composition.raw["task"]["out"]


TEXTS = ["1e-3", "1_000", ".5", "yes", "0x10", "~", "2001-01-01", ".inf", "1.e5", "+1e5", "'x'", "???", "${b}", "1E5"]


def test_a_default_that_names_no_choice_is_told_those_that_there_are(catalogue: Catalogue, recipe: Write) -> None:
    recipe("uneven", "# @package _global_\ndefaults:\n  - toy\n  - /task@spare: ${taks}_${scale}\n")
    with pytest.raises(RecipeError, match=r"possible interpolation keys: scale, recipe, task$"):
        compose(["recipe=uneven"], catalogue)


def test_values_are_read_as_omegaconf_reads_them() -> None:
    for text in (f"a: {text}" for text in TEXTS):
        assert yaml.load(text, Loader=Loader) == OmegaConf.to_container(OmegaConf.create(text)), text


def test_recipes_are_a_group_with_all_its_members(catalogue: Catalogue) -> None:
    repository = Repository(catalogue)
    assert repository.get_group_options("recipe") == ["toy", "toy_fast"]
    assert repository.get_group_options("", ObjectType.GROUP) == ["optimizer", "recipe", "scale", "task"]
    assert not repository.group_exists("recipe/nothing")


def test_the_catalogue_lists_what_there_is(catalogue: Catalogue) -> None:
    assert list(catalogue.recipes()) == ["toy", "toy_fast"]
    assert catalogue.groups() == {"optimizer": ["adamw", "sgd"], "scale": ["full", "tiny"], "task": ["toy"]}
    assert [plugin.name for plugin in catalogue.plugins()] == ["toy_tasks"]
    assert purpose(catalogue.recipes()["toy"]) == "Runs the toy."


def test_what_cannot_be_composed_raises(catalogue: Catalogue, recipe: Write) -> None:
    recipe("lost", "defaults: [nothing_like_it_at_all]\n")
    with pytest.raises(RecipeError, match="nothing_like_it_at_all"):
        compose(["recipe=lost"], catalogue)
    with pytest.raises(RecipeError, match="You must specify 'recipe'"):
        compose([], catalogue)


def test_a_chain_of_interpolations_ends_where_it_is_written(catalogue: Catalogue, recipe: Write) -> None:
    recipe("chain", "defaults: [toy, _self_]\na: ${b}\nb: ${optimizer}\ntask:\n  optimizer: ${a}\n")
    composition = compose(["recipe=chain"], catalogue)
    assert composition.place(("task", "optimizer", "lr")) == ("optimizer", "lr")


def test_a_circle_of_interpolations_is_reported_and_ends(catalogue: Catalogue, recipe: Write) -> None:
    recipe("circle", "defaults: [toy, _self_]\na: ${b}\nb: ${a}\ntask:\n  steps: ${a}\n")
    problems = [str(problem) for problem in findings(compose(["recipe=circle"], catalogue))]
    assert any(
        problem.startswith("recipes/circle.yaml:6 task.steps: the interpolation ${a} fails") for problem in problems
    )


def test_a_package_header_may_follow_a_comment(catalogue: Catalogue, tree: Path) -> None:
    (tree / "conf" / "optimizer" / "adamw.yaml").write_text("# Moved.\n# @package moved.here\nlr: 1\n")
    assert compose(["recipe=toy"], catalogue).raw["moved"] == {"here": {"lr": 1}}


def test_choosing_nothing_is_no_misspelling_of_a_preset(catalogue: Catalogue, recipe: Write, tree: Path) -> None:
    (tree / "conf" / "endpoint").mkdir()
    (tree / "conf" / "endpoint" / "node.yaml").write_text("port: 1\n")  # nearer to "None" than to any other word
    recipe("without", "defaults: [toy, /endpoint: null, _self_]\n")
    assert "endpoint" not in compose(["recipe=without"], catalogue).raw


def test_an_installed_plugin_is_found_by_its_entry_point(
    catalogue: Catalogue, tree: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = tmp_path_factory.mktemp("site")
    (tree / "plugins" / "toy_tasks").rename(site / "toy_tasks")
    information = site / "toy_tasks-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Name: toy-tasks\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text("[framework.plugins]\ntoy = toy_tasks\n")
    monkeypatch.syspath_prepend(str(site))
    assert [(plugin.name, plugin.folder) for plugin in catalogue.plugins()] == [("toy_tasks", site / "toy_tasks")]
    composition = compose(["recipe=toy"], catalogue)
    assert composition.config.task._target_ == "toy_tasks.tasks.Task"


def test_a_recipe_outside_the_root_keeps_its_path(catalogue: Catalogue, tmp_path: Path) -> None:
    assert catalogue.name_of(tmp_path / "recipes" / "toy.yaml") == "recipes/toy.yaml"
    assert catalogue.name_of(Path("/elsewhere/toy.yaml")) == "/elsewhere/toy.yaml"


def test_a_recipe_in_a_folder_is_chosen_by_its_path(catalogue: Catalogue, tree: Path) -> None:
    (tree / "recipes" / "sub").mkdir()
    (tree / "recipes" / "sub" / "alone.yaml").write_text(
        "# @package _global_\ndefaults:\n  - /task: toy\n  - _self_\nplugins: [toy_tasks]\ntask:\n  steps: 5\n"
    )
    composition = compose(["recipe=sub/alone"], catalogue)
    assert composition.tree["task"]["steps"] == 5
    with pytest.raises(RecipeError, match="sub/alone"):
        compose(["recipe=sub/alon"], catalogue)
