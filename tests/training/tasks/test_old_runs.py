"""Runs of the tree before the redesign are shown, evaluated, exported and resumed.

The two runs of the fixture are of one curriculum, stopped in its second and in its third stage. `whole.metrics.csv` is
what the old tree logged without a stop. The built-in world no longer tells of what comes later than a scene's moment,
and rewards see collisions between samples, so that figures are near the old tree's; before both changes the resumed
losses equalled them to the last digit.
"""

from __future__ import annotations

import csv
import functools
import json
import os
import shutil
from pathlib import Path

import pytest
import yaml
from transformers import AutoProcessor, Qwen3VLForConditionalGeneration

from framework.__main__ import main
from framework.launch.eval_jobs.watcher import wanted_of
from framework.recipe.renames import renames
from framework.run.evaluations import Evaluation
from tests.processes import run, run_ranks

OLD = Path(__file__).resolve().parents[2] / "fixtures" / "old_tree"
LAST = 12
METRICS = ("loss", "gradient_norm", "lr", "token_accuracy", "reward/mean", "policy/entropy", "rl/kept")
NEAR = {
    "lr": 0.0,
    "loss": 0.02,
    "gradient_norm": 0.5,
    "token_accuracy": 0.2,
    "reward/mean": 0.5,
    "policy/entropy": 0.1,
    "rl/kept": 0.5,
}
"""How near a resumed metric comes to the old tree's. The learning rate depends on no data; fresh weights or a fresh
optimizer would miss the others by far."""
pytestmark = pytest.mark.timeout(300)


def _work(folder: Path, words: tuple[str, ...]) -> int:
    os.chdir(folder)  # the old runs' paths are relative
    return main(words)


def _command(folder: Path, *words: str) -> str:
    """What `python -m framework WORDS` prints in `folder`."""
    done = run(functools.partial(_work, folder, words))
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def _old(folder: Path, name: str) -> Path:
    """`folder` with a copy of the old run `name` at runs/NAME."""
    shutil.copytree(OLD / "runs" / name, folder / "runs" / name)
    return folder


def _series(file: Path, after: int) -> dict[tuple[int, str], float]:
    """The metrics of the steps `after` which a run was resumed, by step and name."""
    with file.open(newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if row["name"] in METRICS and int(row["step"]) > after]
    return {(int(row["step"]), row["name"]): float(row["value"]) for row in rows}


def _resume(folder: Path, name: str, step: int) -> None:
    """Resume the run, stopped after `step`, to its end."""
    _command(folder, f"run=runs/{name}")
    resumed, whole = _series(folder / "runs" / name / "metrics.csv", step), _series(OLD / "whole.metrics.csv", step)
    assert resumed.keys() == whole.keys()
    assert {step for step, _ in resumed} == set(range(step + 1, LAST + 1))
    for (at, metric), value in whole.items():
        near = NEAR[metric]
        assert resumed[at, metric] == pytest.approx(value, rel=near, abs=near), f"{metric} at step {at}"


@pytest.fixture(scope="module")
def resumed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the old run stopped_in_rl, resumed to its end."""
    folder = _old(tmp_path_factory.mktemp("resumed"), "stopped_in_rl")
    _resume(folder, "stopped_in_rl", 11)
    return folder


@pytest.mark.guarantee("Runs with former names are shown, evaluated, exported and resumed")
@pytest.mark.parametrize("name", ["stopped_in_quality", "stopped_in_rl"])
@pytest.mark.fast_cases(1)
def test_shown_under_todays_names(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = _old(tmp_path, name) / "runs" / name
    assert main(["show", f"run={folder}"]) == 0
    shown = capsys.readouterr().out
    assert "_target_: framework.training.tasks.train.Train" in shown
    assert f"folder: {folder}" in shown, "stored paths follow a moved folder"
    assert [
        module for module in renames().modules if f" {module}." in shown and module not in renames().modules.values()
    ] == []
    assert main(["check", f"run={folder}"]) == 0


@pytest.mark.slow
@pytest.mark.guarantee("Runs with former names are shown, evaluated, exported and resumed")
def test_resumed_in_its_last_stage(resumed: Path) -> None:
    results = json.loads((resumed / "runs" / "stopped_in_rl" / "results.json").read_text())
    assert list(results) == ["untrained", "broad", "quality", "rl"]


@pytest.mark.slow
def test_resumed_in_an_earlier_stage(tmp_path: Path) -> None:
    _resume(_old(tmp_path, "stopped_in_quality"), "stopped_in_quality", 7)


@pytest.mark.guarantee("Runs with former names are shown, evaluated, exported and resumed")
@pytest.mark.slow
@pytest.mark.guarantee("A separate evaluation equals the run's own")
def test_evaluated_as_the_run_itself_was(resumed: Path) -> None:
    folder = resumed / "runs" / "stopped_in_rl"
    shutil.copyfile(folder / "recipe.attempt-1.yaml", folder / "recipe.yaml")  # under the old names again
    own = json.loads((folder / "results.json").read_text())["rl"]
    more = ["+evals/base@task.added.more=all_tasks", "task.added.more.source=${sources.world_held_out}"]
    more += [
        "task.added.more.scenes=1",
        "task.added.more.batch_size=1",
        "paths.cache=cache",
        "sources.world_held_out.scenes=2",
    ]
    printed = _command(resumed, "recipe=evaluate", "task.run=runs/stopped_in_rl", "paths.runs=runs", *more)
    assert "Driving, held_out" in printed
    evaluated = json.loads((resumed / "runs" / "evaluate" / "results.json").read_text())[f"step {LAST}"]
    assert {name: evaluated[name] for name in own} == own
    assert evaluated.keys() - own.keys() == {"more"}, "an eval that the run's recipe has not"
    assert (resumed / "runs" / "evaluate" / "report.html").is_file()

    (checkpoint,) = (folder / "checkpoints").glob(f"step-*{LAST}.attempt-*")
    job = [f"task.checkpoint={checkpoint}", "task.evals=['held_out']", "task.attempt=1", "run.name=job"]
    _command(resumed, "recipe=evaluate", *job, "paths.runs=runs")
    filed = Evaluation(folder, LAST, (checkpoint / "COMMIT").read_text().strip(), "held_out").results()
    assert filed is not None
    assert filed["results"] == own["held_out"]


@pytest.mark.slow
def test_evaluated_on_two_ranks_as_on_one(tmp_path: Path) -> None:
    folder, results = _old(tmp_path, "stopped_in_quality"), {}
    for ranks in (1, 2):
        words = "recipe=evaluate", "task.run=runs/stopped_in_quality", "task.evals=[held_out]", f"run.folder=of-{ranks}"
        printed = run_ranks(ranks, functools.partial(_work, folder, words))
        assert ["Driving, held_out" in text for text in printed] == [rank == 0 for rank in range(ranks)]
        results[ranks] = json.loads((folder / f"of-{ranks}" / "results.json").read_text())
    assert results[2]["step 7"]["held_out"].keys() == results[1]["step 7"]["held_out"].keys()
    one, two = (results[ranks]["step 7"]["held_out"]["drive"]["model"] for ranks in (1, 2))
    assert two == {metric: pytest.approx(sliced, abs=1e-4) for metric, sliced in one.items()}


def test_watched_by_the_evals_of_its_recipe() -> None:
    wanted = wanted_of(OLD / "runs" / "stopped_in_rl", None, None, "min")
    assert wanted.suites == ("held_out", "zero_shot", "simulated")


@pytest.mark.slow
@pytest.mark.guarantee("Runs with former names are shown, evaluated, exported and resumed")
@pytest.mark.parametrize("name", ["stopped_in_quality", "stopped_in_rl"])
def test_exported_for_plain_transformers(name: str, tmp_path: Path) -> None:
    _command(_old(tmp_path, name), "recipe=export", f"task.run=runs/{name}", "task.folder=exported")
    exported = tmp_path / "exported"
    assert Qwen3VLForConditionalGeneration.from_pretrained(exported).num_parameters() > 0
    assert AutoProcessor.from_pretrained(exported).tokenizer.convert_tokens_to_ids("<|ego|>") > 0
    _, front, card = (exported / "README.md").read_text().split("---\n", 2)
    assert yaml.safe_load(front)["model-index"][0]["name"] == name
    assert "| broad | world | WorldShards |" in card
    assert f"| run | {name} |" in card
