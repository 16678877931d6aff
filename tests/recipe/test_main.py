"""The command line, and what a run leaves in its folder."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from framework.__main__ import main
from framework.recipe.catalogue import Catalogue

Write = Callable[[str, str], str]


@pytest.fixture(autouse=True)
def _forget_the_toy() -> Iterator[None]:
    yield
    for name in [name for name in sys.modules if name.startswith("toy_tasks")]:
        del sys.modules[name]


def attempts(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "attempts.jsonl").read_text().splitlines()]


def test_help_imports_nothing_slow_and_names_verbs_recipes_and_groups() -> None:
    program = (
        "import sys; from framework.__main__ import main\n"
        "code = main(['--help'])\n"
        "assert not {'torch', 'lightning', 'transformers', 'hydra'} & set(sys.modules)\n"
        "sys.exit(code)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    for word in ("check", "show", "diff", "plan", "scale=tiny"):
        assert word in done.stdout


def test_help_lists_recipes_with_their_purpose(catalogue: Catalogue, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"], catalogue) == 0
    said = capsys.readouterr().out
    assert "toy_fast  The toy with a higher learning rate." in said
    assert "optimizer: adamw, sgd" in said
    assert "toy_tasks" in said


@pytest.mark.parametrize("words", [["check", "recipe=toi"], ["recipe=toi"], ["show", "recipe=toi"]])
def test_a_mistyped_recipe_exits_2_in_one_line(
    catalogue: Catalogue, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words, catalogue) == 2
    out, err = capsys.readouterr()
    said = (out + err).splitlines()
    assert len(said) == 1
    assert "(did you mean toy?)" in said[0]


@pytest.mark.parametrize("verb", ["show", "diff"])
def test_a_mistyped_override_is_never_dropped(
    catalogue: Catalogue, verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([verb, "recipe=toy", "run.sead=1"], catalogue) == 2
    assert "command line run.sead: there is no such key (did you mean run.seed?)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            ["chek", "recipe=toy"],
            "chek: no such verb; there are: check, show, diff, plan, status, logs, stop, resume, ",
        ),
        (["chek", "recipe=toy"], "(did you mean check?)"),
        (
            ["check", "toy"],
            "toy: a recipe is named by recipe=NAME, and a value set by key=value (did you mean recipe=toy?)",
        ),
        (["toy_fats"], "(did you mean recipe=toy_fast?)"),
        (
            ["check", "recipe=toy", "run.seed"],
            "run.seed: a recipe is named by recipe=NAME, and a value set by key=value",
        ),
        (["show", "recipe=toy", "run.seed=1,2", "-m"], "-m: show takes one recipe, no sweep: leave it out"),
        (["check", "recipe=toy", "\x1b[2Jrun.seed"], "U+001B[2Jrun.seed: "),
        (["show", "recipe=toy", "run.seed=1\x1b]0;title\x07"], "U+001B]0;titleU+0007"),
    ],
)
def test_a_word_that_is_no_override_is_one_line(
    catalogue: Catalogue, words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words, catalogue) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert told in line


def test_check_checks_a_sweep(catalogue: Catalogue, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "recipe=toy", "task.steps=1,2", "-m"], catalogue) == 0
    said = "no problems in 2 runs: toy/sweep-task.steps=1, toy/sweep-task.steps=2\n"
    assert capsys.readouterr().out == said
    assert main(["check", "recipe=toy", "task.steps=1,many", "-m"], catalogue) == 2
    assert "task.steps: must be an integer, not text (many)" in capsys.readouterr().out


@pytest.mark.slow
def test_check_checks_a_search(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["check", "recipe=demo", "hydra/sweeper=optuna", "hydra.sweeper.n_trials=3", "-m"]
    assert main([*words, "curriculum.stages.broad.lr=interval(1e-5,1e-3)"]) == 0
    said = "no problems: 3 trials of held_out/drive/ade over curriculum.stages.broad.lr\n"
    assert capsys.readouterr().out == said
    assert main([*words, "curriculum.stages.broad.lr=interval(100,1000)"]) == 2
    assert "curriculum.stages.broad.lr: must be a number from" in capsys.readouterr().out


def test_no_recipe_exits_2(catalogue: Catalogue, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check"], catalogue) == 2
    assert "recipe=NAME is needed; there are: toy, toy_fast" in capsys.readouterr().err


def test_looking_verbs(catalogue: Catalogue, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "recipe=toy"], catalogue) == 0
    assert "toy: no problems" in capsys.readouterr().out
    assert main(["show", "recipe=toy"], catalogue) == 0
    assert "recipes/toy.yaml:8" in capsys.readouterr().out
    assert main(["diff", "recipe=toy_fast"], catalogue) == 0
    assert "optimizer.lr: 0.001 -> 0.01" in capsys.readouterr().out
    assert main(["diff", "recipe=toy", "against=toy_fast"], catalogue) == 0
    assert "optimizer.lr: 0.01 -> 0.001" in capsys.readouterr().out


def test_a_run_leaves_what_identifies_it(catalogue: Catalogue, tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_SERVICE_API_KEY", "hunter2")
    assert main(["recipe=toy", "run.seed=5"], catalogue) == 0
    folder = tree / "runs" / "toy"
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
    assert recipe["task"]["optimizer"]["lr"] == 0.001
    assert json.loads((folder / "provenance.json").read_text())["run.seed"] == "command line"
    assert set(json.loads((folder / "code.json").read_text())) == {"sha", "dirty", "untracked", "version"}
    assert "omegaconf" in json.loads((folder / "environment.json").read_text())["packages"]
    assert all("hunter2" not in file.read_text() for file in folder.iterdir())
    start, end = attempts(folder)
    assert (start["event"], start["attempt"], start["overrides"]) == ("start", 1, ["recipe=toy", "run.seed=5"])
    assert (end["event"], end["outcome"]) == ("end", "finished")


def test_the_same_run_again_continues_and_keeps_the_older_recipe(catalogue: Catalogue, tree: Path) -> None:
    assert main(["recipe=toy"], catalogue) == 0
    assert main(["recipe=toy"], catalogue) == 0
    assert main(["recipe=toy", "task.steps=9"], catalogue) == 0
    folder = tree / "runs" / "toy"
    assert [entry["attempt"] for entry in attempts(folder) if entry["event"] == "start"] == [1, 2, 3]
    assert yaml.safe_load((folder / "recipe.yaml").read_text())["task"]["steps"] == 9
    assert yaml.safe_load((folder / "recipe.attempt-2.yaml").read_text())["task"]["steps"] == 3
    assert (tree / "steps.txt").read_text() == "3\n3\n9\n"


def test_a_failing_run_is_recorded(catalogue: Catalogue, tree: Path) -> None:
    assert main(["recipe=toy", "task.out=a.csv"], catalogue) == 2
    assert attempts(tree / "runs" / "toy")[-1]["outcome"] == "RecipeError"


def test_only_the_first_rank_writes(catalogue: Catalogue, tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    assert main(["recipe=toy"], catalogue) == 0
    assert not (tree / "runs").exists()
    assert (tree / "steps.txt").read_text() == "3\n"


@pytest.mark.slow
def test_a_sweep_runs_the_product_in_folders_of_their_own(
    catalogue: Catalogue, tree: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["recipe=toy", "task.steps=1,2", "optimizer.lr=0.1,0.2", "-m"], catalogue) == 0
    names = sorted(folder.name for folder in (tree / "runs" / "toy").iterdir())
    assert names == [f"sweep-task.steps={steps},optimizer.lr={lr}" for steps in (1, 2) for lr in (0.1, 0.2)]
    assert (tree / "steps.txt").read_text() == "1\n1\n2\n2\n"
    said = capsys.readouterr().out
    assert said.count(": finished") == 4
    assert "\ncompare them: python -m framework compare toy/sweep-" in said


def test_a_sweep_goes_on_after_a_failure_and_says_so(
    catalogue: Catalogue, tree: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["recipe=toy", "task.out=nowhere/out.txt,out.txt", "--multirun"], catalogue) == 1
    said = capsys.readouterr().out
    assert ": failed: FileNotFoundError" in said
    assert "toy/sweep-task.out=out.txt: finished" in said


def test_a_sweep_with_a_fault_runs_nothing(catalogue: Catalogue, tree: Path) -> None:
    assert main(["recipe=toy", "task.steps=2,many", "-m"], catalogue) == 2
    assert not (tree / "steps.txt").exists()


def test_a_task_must_run(catalogue: Catalogue, recipe: Write, capsys: pytest.CaptureFixture[str]) -> None:
    recipe("idle", "task:\n  _target_: torch.nn.Identity\n")
    assert main(["recipe=idle"], catalogue) == 2
    assert "recipes/idle.yaml:3 task: Identity is not a task: it has no run(run)" in capsys.readouterr().err
