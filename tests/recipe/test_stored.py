"""What a run left in its folder is a recipe: checked like any other, and instantiated as it ran."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from framework.__main__ import main
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


@pytest.mark.attack("target", "a forbidden target in a stored recipe", "refused")
def test_a_target_that_is_not_allowed_is_not_made_from_there_either(catalogue: Catalogue, tmp_path: Path) -> None:
    folder = run(catalogue, tmp_path)
    file = folder / "recipe.yaml"
    file.write_text(file.read_text().replace("toy_tasks.tasks.Task", "os.system"))
    with pytest.raises(RecipeError, match=r"os.system"):
        instantiate(stored(folder, catalogue))


@pytest.mark.attack("yaml", "a stored recipe that is none, or that explodes", "one error with the file")
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no recipe"),
        ("- a\n", "holds no recipe"),
        ("hello\n", "holds no recipe"),
        ("run: 3\n", "holds no recipe"),
        ("run:\n", "holds no recipe"),
        ("run: [1]\n", "holds no recipe"),
        ("".join(f"a{n}: ${{a{n + 1}}}${{a{n + 1}}}\n" for n in range(40)) + "a40: x\n", "thousands of values"),
    ],
)
def test_a_file_that_holds_no_recipe_is_one_error(
    catalogue: Catalogue, tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, message: str
) -> None:
    (tmp_path / "recipe.yaml").write_text(text)
    for verb in ("show", "check", "diff"):
        assert main([verb, f"run={tmp_path}"], catalogue) == 2
        (said,) = "".join(capsys.readouterr()).strip().splitlines()
        assert said.startswith(str(tmp_path / "recipe.yaml"))
        assert message in said


def test_a_folder_without_a_run_is_told_with_the_nearest_run(catalogue: Catalogue, tmp_path: Path) -> None:
    with pytest.raises(
        RecipeError, match=r"recipe.yaml: no such file; run=FOLDER takes the folder of a run that has started$"
    ):
        stored(tmp_path / "runs" / "missing")
    folder = run(catalogue, tmp_path)
    with pytest.raises(RecipeError, match=rf"toi/recipe.yaml: no such file; .*\(did you mean {folder}\?\)"):
        stored(tmp_path / "toi")


def test_the_command_looks_at_a_stored_recipe(
    catalogue: Catalogue, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = run(catalogue, tmp_path, "task.steps=11")
    assert main(["check", f"run={folder}"], catalogue) == 0
    assert capsys.readouterr().out == "toy: no problems (1 file composed)\n"
    assert main(["show", f"run={folder}", "run.seed=4"], catalogue) == 0
    shown = capsys.readouterr().out
    assert re.search(rf"steps: 11 +# {folder}/recipe.yaml:\d+$", shown, re.MULTILINE)
    assert re.search(r"seed: 4 +# command line$", shown, re.MULTILINE)


def test_a_run_is_resumed_from_its_folder(catalogue: Catalogue, tmp_path: Path, tree: Path) -> None:
    folder = run(catalogue, tmp_path, "task.steps=11")
    assert main([f"run={folder}"], catalogue) == 0
    assert (tree / "steps.txt").read_text() == "11\n"
    starts = [line for line in (folder / "attempts.jsonl").read_text().splitlines() if '"start"' in line]
    assert [json.loads(line)["overrides"] for line in starts][1:] == [[f"run={folder}"]]


def test_a_stored_recipe_is_compared_with_a_recipe_or_another_run(
    catalogue: Catalogue, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = run(catalogue, tmp_path, "task.steps=11", "optimizer.lr=0.5", "run.name=first")
    other = run(catalogue, tmp_path, "task.steps=12", "optimizer.lr=0.5", "run.name=second")
    assert main(["diff", f"run={other}", f"against={folder}"], catalogue) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"# second against {folder}\n")
    assert [line.partition(":")[0] for line in out.splitlines()[1:]] == ["task.steps"]
    assert main(["diff", f"run={folder}", "against=toy"], catalogue) == 0
    changed = [line.partition("   (")[0] for line in capsys.readouterr().out.splitlines()]
    assert changed[1:] == ["optimizer.lr: 0.001 -> 0.5", "paths.runs: runs -> " + str(tmp_path), "task.steps: 3 -> 11"]
    assert main(["diff", "recipe=toy", f"against={folder}"], catalogue) == 0
    assert "task.steps: 11 -> 3   (recipes/toy.yaml:8)" in capsys.readouterr().out.splitlines()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["check", "run={run}", "recipe=toy"], "run={run}: cannot be combined with recipe=NAME"),
        (["run={run}", "recipe=toy"], "run={run}: cannot be combined with recipe=NAME"),
        (["show", "run={run}", "run={run}"], "run: takes one folder, not 2"),
        (["run={run}", "optimizer=sgd"], "optimizer=sgd: a stored recipe takes values, not presets"),
        (["run={run}", "task.steps=1,2", "-m"], "run={run}: -m needs recipe=NAME"),
        (["diff", "run={run}"], "run={run}: a stored recipe has no parent: give against=RECIPE or against=FOLDER"),
        (
            ["diff", "run={run}", "against=toy", "against=toi"],
            "against=toi: one recipe or folder to compare with, not 2",
        ),
        (["diff", "run={run}", "against=toi"], "against=toi: neither a recipe nor the folder of a run"),
    ],
)
@pytest.mark.fast_cases(3)
def test_what_a_stored_recipe_cannot_be_asked_is_refused(
    catalogue: Catalogue, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    folder = run(catalogue, tmp_path)
    assert main([word.format(run=folder) for word in words], catalogue) == 2
    captured = capsys.readouterr()
    assert f"command line {message.format(run=folder)}" in captured.out + captured.err
    assert not (tmp_path / "steps.txt").exists()


def test_a_component_that_got_more_arguments_since_is_read(tmp_path: Path) -> None:
    """The recordings' `datasets` are made of their names, and of nothing where the recipe said nothing."""
    target = "framework.data.sources.recordings.RecordingShards"
    (tmp_path / "recipe.yaml").write_text(
        f"run: {{name: a, seed: 0}}\nall: {{_target_: {target}, recordings: x, cache: y}}\n"
        f"some: {{_target_: {target}, recordings: x, datasets: [kitti], cache: y}}\n"
    )
    tree = stored(tmp_path).tree
    assert "nuscenes" in tree["all"]["datasets"]
    assert list(tree["some"]["datasets"]) == ["kitti"]
    assert tree["all"]["cache"] == "y"
