"""What a run left in its folder is a recipe: checked like any other, and instantiated as it ran."""

from __future__ import annotations

from pathlib import Path

import pytest

from framework.recipe.catalogue import Catalogue
from framework.recipe.compose import compose
from framework.recipe.instantiate import instantiate
from framework.recipe.problem import RecipeError
from framework.recipe.stored import stored
from framework.run.folder import open_run


def run(catalogue: Catalogue, folder: Path, *overrides: str) -> Path:
    composition = compose(["recipe=toy", f"paths.runs={folder}", *overrides], catalogue)
    with open_run(composition.tree, composition.provenance(), composition.overrides) as opened:
        return opened.path


def test_a_run_is_instantiated_as_it_ran_whatever_its_recipe_has_become(catalogue: Catalogue, tmp_path: Path) -> None:
    folder = run(catalogue, tmp_path, "task.steps=11")
    (catalogue.root / "plugins" / "toy_tasks" / "conf" / "task" / "toy.yaml").write_text("steps: wrong\n")
    assert instantiate(stored(folder, catalogue)).steps == 11


def test_a_run_that_the_code_can_no_longer_make_names_file_and_line(catalogue: Catalogue, tmp_path: Path) -> None:
    folder = run(catalogue, tmp_path)
    file = folder / "recipe.yaml"
    file.write_text(file.read_text().replace("toy_tasks.tasks.Task", "toy_tasks.tasks.Tusk"))
    line = 1 + next(number for number, text in enumerate(file.read_text().splitlines()) if "Tusk" in text)
    with pytest.raises(RecipeError, match=rf"recipe.yaml:{line} .*no such target") as caught:
        instantiate(stored(folder, catalogue))
    assert str(file) in str(caught.value)


def test_a_target_that_is_not_allowed_is_not_made_from_there_either(catalogue: Catalogue, tmp_path: Path) -> None:
    folder = run(catalogue, tmp_path)
    file = folder / "recipe.yaml"
    file.write_text(file.read_text().replace("toy_tasks.tasks.Task", "os.system"))
    with pytest.raises(RecipeError, match=r"os.system"):
        instantiate(stored(folder, catalogue))


def test_a_folder_without_a_run_is_told(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"recipe.yaml: no such file: give the folder of a run"):
        stored(tmp_path)
