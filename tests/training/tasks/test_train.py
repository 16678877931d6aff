"""Training end to end on the built-in world: recipes run, resume bit for bit, and leave what they should."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from framework.data.stream.ledger import read_attempts
from framework.recipe.catalogue import Catalogue
from framework.run.heartbeat import parse_heartbeat
from framework.run.layout import LEDGER
from framework.run.phases import read_phases
from framework.tracking.metrics_file import read_series
from tests.dialogues import written_conversations
from tests.processes import Work, framework, run, started
from tests.worlds import worlds

NAVSIM = [f"task.form.{key}=one" for key in ("team_name", "authors", "email", "institution", "country")]
WOD = ["account_name=a@example.com", "unique_method_name=one", "authors=[one]", "num_model_parameters=2M",
       "public_model_names=[one]"]  # fmt: skip
OF_A_RUN = {"predict": [], "evaluate_quantized": [], "export_edge": []}
"""Recipes about a trained run, with what they need more."""
OF_PREDICTIONS = {"submit_navsim": NAVSIM, "submit_wod_e2e": [f"task.form.{word}" for word in WOD]}
"""Recipes about a run of `predict`."""
OF_OTHER_TESTS = {"export", "evaluate", "submit_bench2drive", *OF_A_RUN, *OF_PREDICTIONS}
SUPERVISED = ("demo", "~curriculum.stages.rl")
"""The demo's supervised stages."""
DEMO = (*SUPERVISED, "evals=[held_out,zero_shot]")
UNEVALUATED = (*SUPERVISED, "evals=[]")
"""Evaluations change no step."""
SMALL_GROUPS = ("global_batch=4", "group_size=4", "max_resample_factor=4")
"""A step of reinforcement learning; of an untrained policy the filter keeps few groups, and others are sampled."""
pytestmark = pytest.mark.timeout(600)


def _command(folder: Path, recipe: str, *overrides: str) -> Work:
    paths = [f"paths.runs={folder}/runs", f"paths.cache={worlds()}"]
    few = [
        "sources.world_train.scenes=48",
        "sources.world_hard.scenes=32",
        "sources.world_held_out.scenes=2",
        "sources.world_zero_shot.scenes=2",
        "sources.world_hard_held_out.scenes=2",
    ]
    return framework(f"recipe={recipe}", "scale=tiny", *paths, *few, *overrides)


def _run(folder: Path, recipe: str, *overrides: str) -> subprocess.CompletedProcess[str]:
    return run(_command(folder, recipe, *overrides))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of an undisturbed run of the demo, and what it printed."""
    folder = tmp_path_factory.mktemp("undisturbed")
    done = _run(folder, *DEMO)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder / "runs" / "demo-tiny", done.stdout


@pytest.mark.slow
def test_a_run_leaves_table_report_metrics_and_checkpoints(finished: tuple[Path, str]) -> None:
    folder, printed = finished
    assert f"report    {folder / 'report.html'}" in printed
    assert "untrained" in printed
    results = json.loads((folder / "results.json").read_text())
    assert list(results) == ["untrained", "broad", "quality"]
    assert {"model", "constant velocity"} <= {
        name.replace("_", " ") for name in results["quality"]["held_out"]["drive"]
    }
    assert (folder / "report.html").read_text().count("data:image") > 0
    beats = [beat for line in printed.splitlines() if (beat := parse_heartbeat(line)) is not None]
    assert [beat.step for beat in beats] == list(range(1, 21))
    assert [step for step, _ in read_series(folder / "metrics.csv", "loss")] == list(range(1, 21))
    assert [beat.loss for beat in beats] == pytest.approx(
        [loss for _, loss in read_series(folder / "metrics.csv", "loss")], rel=1e-5
    )
    assert beats[-1].loss < beats[0].loss
    for name in ("recipe.yaml", "provenance.json", "code.json", "environment.json", "attempts.jsonl"):
        assert (folder / name).is_file()
    assert (folder / "checkpoints" / "attempts" / "attempt-1.json").is_file()  # the policy's own store has saved
    phases = [line.phase for line in read_phases(folder)[0]]
    stage = ["load", "first_batch", "compile", "productive", "checkpoint", "productive", "checkpoint", "productive"]
    assert phases == ["init", "evaluate", *(2 * [*stage, "evaluate", "evaluate"])]


@pytest.mark.slow
@pytest.mark.parametrize(("killed_after", "words"), [(7, UNEVALUATED), (13, DEMO)])
def test_sigterm_then_the_same_command_ends_with_the_same_losses_bit_for_bit(
    finished: tuple[Path, str], tmp_path: Path, killed_after: int, words: tuple[str, ...]
) -> None:
    with started(_command(tmp_path, *words)) as process:
        for line in process.lines():
            beat = parse_heartbeat(line)
            if beat is not None and beat.step == killed_after:
                os.kill(process.pid, signal.SIGTERM)
        assert process.wait(timeout=60) == 128 + signal.SIGTERM
    done = _run(tmp_path, *words)
    assert done.returncode == 0, done.stderr[-3000:]
    assert _losses(tmp_path / "runs" / "demo-tiny") == _losses(finished[0])


@pytest.mark.slow
def test_a_killed_run_resumes_from_its_last_checkpoint(finished: tuple[Path, str], tmp_path: Path) -> None:
    with started(_command(tmp_path, *UNEVALUATED)) as process:
        for line in process.lines():
            beat = parse_heartbeat(line)
            if beat is not None and beat.step == 7:
                os.killpg(process.pid, signal.SIGKILL)
                break
    done = _run(tmp_path, *UNEVALUATED)
    assert done.returncode == 0, done.stderr[-3000:]
    steps = [beat.step for line in done.stdout.splitlines() if (beat := parse_heartbeat(line)) is not None]
    assert steps == list(range(6, 21))
    assert _losses(tmp_path / "runs" / "demo-tiny") == _losses(finished[0])


@pytest.mark.slow
def test_exports_and_evaluates_what_was_trained(finished: tuple[Path, str]) -> None:
    from transformers import AutoProcessor, Qwen3VLForConditionalGeneration

    folder = finished[0].parents[1]
    for recipe in ("export", "evaluate"):
        done = run(
            framework(f"recipe={recipe}", f"task.run={finished[0]}", f"paths.runs={folder}/runs", f"run.name={recipe}")
        )
        assert done.returncode == 0, done.stderr[-3000:]
    exported = folder / "runs" / "export" / "export"
    assert Qwen3VLForConditionalGeneration.from_pretrained(exported).num_parameters() > 0
    assert AutoProcessor.from_pretrained(exported).tokenizer.convert_tokens_to_ids("<|ego|>") > 0
    evaluated = json.loads((folder / "runs" / "evaluate" / "results.json").read_text())
    trained = json.loads((finished[0] / "results.json").read_text())
    assert evaluated["step 20"]["held_out"] == trained["quality"]["held_out"]


@pytest.mark.slow
def test_every_recipe_about_a_run_runs_tiny(finished: tuple[Path, str], tmp_path: Path) -> None:
    assert _run(tmp_path, "submit_bench2drive").returncode == 0, "it needs no run"
    for trained, recipes in ((finished[0], OF_A_RUN), (tmp_path / "runs" / "predict-tiny", OF_PREDICTIONS)):
        for recipe, words in recipes.items():
            done = _run(tmp_path, recipe, f"task.run={trained}", *words)
            assert done.returncode == 0, f"{recipe}: {done.stderr[-3000:]}"


@pytest.mark.slow
@pytest.mark.parametrize("recipe", sorted(set(Catalogue().recipes()) - OF_OTHER_TESTS))
def test_every_recipe_runs_tiny(recipe: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    extra = ["curriculum.max_steps_per_stage=2"]
    if recipe in ("sft_drive", "rl_recordings"):
        extra += [f"paths.recordings={request.getfixturevalue('recordings')}"]
    if recipe == "rl_recordings":
        extra += ["sources.argoverse_perturbed.datasets.argoverse.variants=2"]
    if recipe == "sft_mixed":
        world = {"stage.data.recordings": "world_train", "evals.recordings": "world_held_out"}
        extra += [f"paths.conversations={written_conversations(tmp_path / 'talks')}"]
        extra += [f"{key}.source=${{sources.{source}}}" for key, source in world.items()]
    if recipe.startswith("rl_"):
        extra += ["init_from=null", *(f"stage.{size}" for size in SMALL_GROUPS)]
    if recipe == "rl_dapo_closed_loop":
        extra += ["stage.rollout.horizon_s=2.0"]
    if recipe == "demo":
        extra += ["evals.closed_loop.steps=8"]
    if recipe in ("demo", "curriculum"):
        extra += [f"curriculum.stages.rl.{size}" for size in SMALL_GROUPS]
    done = _run(tmp_path, recipe, *extra)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "  report    " in done.stdout


@pytest.mark.slow
def test_a_stage_trains_batches_of_its_own(tmp_path: Path) -> None:
    own = ["curriculum.stages.quality.global_batch=12", "curriculum.stages.quality.micro_batch=3"]
    few = ["curriculum.max_steps_per_stage=2", "evals.held_out.tasks={drive: 8}"]
    done = _run(tmp_path, *DEMO, *own, *few)
    assert done.returncode == 0, done.stderr[-3000:]
    attempts = read_attempts(tmp_path / "runs" / "demo-tiny" / LEDGER)
    trained = {
        stage: [(one.header.global_batch, len(one.rows)) for one in of_stage] for stage, of_stage in attempts.items()
    }
    assert trained == {"broad": [(8, 16)], "quality": [(12, 24)]}


@pytest.mark.slow
def test_the_cameras_calibration_is_trained_when_it_is_asked_for(tmp_path: Path) -> None:
    asked = ["data/sensors=[small,calibration]", "model/encoders=[lidar,radar,boxes,ego,calibration]"]
    few = ["curriculum.max_steps_per_stage=2", "evals.held_out.tasks={drive: 8}"]
    done = _run(tmp_path, *DEMO, *asked, *few)
    assert done.returncode == 0, done.stderr[-3000:]
    (resolved,) = tmp_path.glob("runs/demo-tiny/**/recipe.yaml")
    assert "CalibrationEncoder" in resolved.read_text()
    assert len(_losses(tmp_path / "runs" / "demo-tiny")) == 4


@pytest.mark.slow
def test_a_sweep_runs_each_of_its_settings(tmp_path: Path) -> None:
    done = _run(
        tmp_path,
        *SUPERVISED,
        "evals=[held_out]",
        "-m",
        "run.seed=0,1",
        "curriculum.max_steps_per_stage=2",
        "evals.held_out.tasks={drive: 64}",
    )
    assert done.returncode == 0, done.stderr[-3000:]
    runs = sorted(tmp_path.glob("runs/**/metrics.csv"))
    assert len(runs) == 2
    assert _losses(runs[0].parent) != _losses(runs[1].parent)


def _losses(folder: Path) -> list[tuple[int, str]]:
    """Step and loss as it was written, to the last digit; of a step that two attempts trained, the later's."""
    with (folder / "metrics.csv").open(newline="") as stream:
        values = {int(row["step"]): row["value"] for row in csv.DictReader(stream) if row["name"] == "loss"}
    return sorted(values.items())
