"""Checkpoints of a real run are evaluated by jobs of their own, once, by what the run's own recipe says."""

from __future__ import annotations

import json
import time
import zipfile
from pathlib import Path

import pytest

from framework.launch.eval_jobs.companion import companion_jobs
from framework.launch.eval_jobs.watcher import checkpoints_of, evaluation_overrides, watch
from framework.run.evaluations import Evaluation, Wanted
from framework.tracking.comet import experiment_key
from framework.training.tasks.evaluate import Evaluate
from tests.processes import framework, run
from tests.worlds import worlds

SUITE = "held_out"


def evaluations_in_comet(folder: Path) -> dict[int, float]:
    """The figure `drive/ade` of the suite that the run's Comet archives hold, by step."""
    figures = {}
    for path in (folder / "comet").glob("*.zip"):
        assert path.name.startswith(experiment_key("watched", folder))
        with zipfile.ZipFile(path) as archive:
            for message in map(json.loads, archive.read("messages.json").splitlines()):
                metric = message["payload"].get("metric", {})
                if metric.get("metricName") == f"evaluation/{SUITE}/drive/ade":
                    figures[metric["step"]] = metric["metricValue"]
    return figures


@pytest.mark.guarantee("A separate evaluation equals the run's own")
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_checkpoint_of_a_run_is_evaluated_by_one_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COMET_API_KEY", raising=False)
    folder = tmp_path / "runs" / "watched"
    wanted = Wanted((SUITE,), SUITE, "drive/ade", "min")
    wanted.write(folder)  # before the run begins, as a submission does
    done = run(framework(
        "recipe=demo", "scale=tiny", "tracking=comet", "run.name=watched", f"paths.runs={tmp_path}/runs",
        f"paths.cache={worlds()}", "sources.world_train.scenes=48", "sources.world_hard.scenes=32",
        "sources.world_held_out.scenes=6", "sources.world_zero_shot.scenes=6",
        "curriculum.max_steps_per_stage=1", "checkpoint.every=1", "checkpoint.retention.rules.last.count=1",
        "evals.held_out.tasks={drive: 64}", "evals.held_out.before_training=false", "~evals.zero_shot",
        "~evals.closed_loop", "~curriculum.stages.rl",
    ))  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    checkpoints = checkpoints_of(folder)
    steps = list(checkpoints)
    assert steps == [1, 2], "retention waits for the evaluations"
    jobs = companion_jobs(folder)
    watch(folder, jobs, wanted, once=False, every_s=0.5)
    evaluations = {step: Evaluation(folder, step, saved.hash, SUITE) for step, saved in checkpoints.items()}
    while any(jobs.find(evaluation.job_name(1)) for evaluation in evaluations.values()):
        time.sleep(0.1)  # the results are there before their job has logged to Comet and ended
    filed = {step: evaluation.results() for step, evaluation in evaluations.items()}
    assert None not in filed.values(), [path.read_text()[-2000:] for path in folder.rglob("*.log")]
    assert len(list((folder / "jobs").glob("*.done"))) == len(steps)
    trained = json.loads((folder / "results.json").read_text())
    assert (filed[1] or {})["results"] == trained["broad"][SUITE]
    assert (filed[2] or {})["results"] == trained["quality"][SUITE]
    figures = {step: (results or {})["figures"]["drive/ade"] for step, results in filed.items()}
    assert evaluations_in_comet(folder) == pytest.approx(figures)
    best = json.loads((folder / "best.json").read_text())
    assert best["value"] == min(figures.values())
    assert figures[best["step"]] == best["value"]

    evaluation, own = evaluations[2], tmp_path / "again"
    again = run(framework(*evaluation_overrides(evaluation, 1, checkpoints[2].folder.name, own)))
    assert again.returncode == 0, again.stderr[-3000:]
    assert "already evaluated by held_out, or another job does it now" in again.stderr
    assert evaluation.results() == filed[2]


def test_a_folder_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"task.checkpoint: .*newest is no checkpoint; give RUN/checkpoints/step-N"):
        Evaluate(checkpoint=str(tmp_path / "checkpoints" / "newest"), evals=[SUITE])


@pytest.mark.parametrize("given", [{}, {"run": "RUN", "checkpoint": "RUN/checkpoints/step-00000001.attempt-1"}])
def test_either_a_run_or_a_checkpoint_is_given(given: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"task: give either run, a run's folder, or checkpoint, RUN/checkpoints"):
        Evaluate(**given)
