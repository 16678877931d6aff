"""Results name the weights that they are of, and no others are taken for them."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from framework.run.folder import RunFolder
from framework.training.tasks.results import Evaluated, ResultsFile, eval_hash, report_results

RECIPE: dict[str, Any] = {
    "task": {
        "evals": {"held_out": {"tasks": {"drive": 64}, "source": {"scenes": 6, "cache": "here", "workers": 2}}},
        "data": {"tasks": {"drive": {}}, "cameras": ["front"], "workers": 0},
    }
}
RESULTS = {"drive": {"model": {"ade": {"all": 1.5}, "scenes": {"all": 6.0}}}}


def _of(step: int, weights: str, recipe: dict[str, Any] = RECIPE) -> Evaluated:
    return Evaluated(step, f"step-{step:08d}.attempt-1", weights, eval_hash(recipe, "held_out"))


def _changed(*keys: str, value: Any) -> dict[str, Any]:
    recipe = copy.deepcopy(RECIPE)
    node = recipe["task"]
    for key in keys[:-1]:
        node = node[key]
    node[keys[-1]] = value
    return recipe


@pytest.fixture
def evaluated(tmp_path: Path) -> Path:
    """The folder of a run whose stage broad was evaluated at step 4."""
    ResultsFile(tmp_path, RECIPE).add("broad", "held_out", _of(4, "aa"), RESULTS)
    return tmp_path


def test_results_are_known_to_the_next_attempt_and_say_what_they_are_of(evaluated: Path) -> None:
    again = ResultsFile(evaluated, RECIPE)
    assert again.has("broad", "held_out", _of(4, "aa"))
    assert again.by_stage == json.loads((evaluated / "results.json").read_text()) == {"broad": {"held_out": RESULTS}}
    assert again.weights() == {"broad": "step 4, step-00000004.attempt-1, weights aa"}
    entry = json.loads((evaluated / "evaluated.json").read_text())["broad"]["held_out"]
    assert (entry["step"], entry["weights"]) == (4, "aa")


@pytest.mark.fault("results of old weights")
@pytest.mark.parametrize("other", [_of(6, "bb"), _of(4, "bb")])
def test_other_weights_are_evaluated_again(evaluated: Path, other: Evaluated) -> None:
    again = ResultsFile(evaluated, RECIPE)
    again.start("broad", other.weights)
    assert not again.has("broad", "held_out", other)
    assert again.by_stage["broad"] == {}


@pytest.mark.fault("results of old weights")
@pytest.mark.parametrize(
    "recipe",
    [
        _changed("evals", "held_out", "tasks", value={"drive": 32}),
        _changed("evals", "held_out", "source", "scenes", value=7),
        _changed("data", "cameras", value=None),
    ],
)
def test_an_eval_that_changed_drops_its_results(
    evaluated: Path, recipe: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    again = ResultsFile(evaluated, recipe)
    assert not again.has("broad", "held_out", _of(4, "aa", recipe))
    assert again.by_stage["broad"] == {}
    assert "held_out after broad: the eval has changed since" in caplog.text


def test_a_task_may_begin_without_the_results_of_its_folder(evaluated: Path, caplog: pytest.LogCaptureFixture) -> None:
    empty = ResultsFile(evaluated, _changed("data", "cameras", value=None), known=False)
    assert (empty.by_stage, empty.of) == ({}, {})
    assert caplog.text == ""


@pytest.mark.parametrize(
    "recipe",
    [
        _changed("evals", "held_out", "source", "cache", value="there"),
        _changed("evals", "held_out", "source", "workers", value=1),
        _changed("data", "workers", value=4),
    ],
)
def test_where_scenes_are_written_changes_no_result(evaluated: Path, recipe: dict[str, Any]) -> None:
    assert ResultsFile(evaluated, recipe).has("broad", "held_out", _of(4, "aa", recipe))


@pytest.mark.fault("results of old weights")
def test_a_report_of_other_results_is_written_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also where no eval gives an example: the scenes of an earlier page would be those of other weights."""
    (tmp_path / "code.json").write_text(json.dumps({"sha": None, "dirty": False}))
    run, page = RunFolder(tmp_path, 1, "run", 0), tmp_path / "report.html"
    for step, weights in ((4, "aa"), (6, "bb")):
        results = ResultsFile(tmp_path, RECIPE)
        results.start("broad", weights)
        results.add("broad", "held_out", _of(step, weights), RESULTS)
        report_results(run, results, [])
        assert f"step {step}, " in page.read_text()
    assert "step 4, " not in page.read_text()
    page.write_text(page.read_text() + "with scenes")
    report_results(run, ResultsFile(tmp_path, RECIPE), [])
    assert page.read_text().endswith("with scenes"), "the same results keep their page"


def test_results_without_what_they_are_of_are_not_trusted(evaluated: Path) -> None:
    """Those of an earlier version, and those of a crash between the two files."""
    (evaluated / "results.json").write_text(json.dumps({"broad": {"held_out": {"drive": {}}}}))
    again = ResultsFile(evaluated, RECIPE)
    assert not again.has("broad", "held_out", _of(4, "aa"))
    (evaluated / "evaluated.json").write_text(json.dumps({"broad": {"held_out": {"stage": "broad"}}}))
    assert not ResultsFile(evaluated, RECIPE).has("broad", "held_out", _of(4, "aa"))
    (evaluated / "evaluated.json").unlink()
    again = ResultsFile(evaluated, RECIPE)
    again.start("broad", "aa")
    assert again.by_stage["broad"] == {}
