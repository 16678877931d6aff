"""Each committed checkpoint is evaluated once by each suite, whatever process dies."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st

from framework.launch.eval_jobs.companion import CompanionJobs
from framework.launch.eval_jobs.watcher import (
    Watcher,
    WatchError,
    checkpoints_of,
    evaluation_overrides,
    finished,
    main,
    quoted,
    wanted_of,
    watcher_lock,
)
from framework.launch.spec import local_spec
from framework.run.evaluations import TRIES, Evaluation, Wanted
from framework.run.files import read_json, write_json
from tests.launch.eval_jobs.toy_watch import FolderScheduler

REPOSITORY = Path(__file__).resolve().parents[3]
WANTED = Wanted(("held_out", "zero_shot"), "held_out", "drive/ade", "min")


def watcher_of(run: Path, scheduler: FolderScheduler, wanted: Wanted = WANTED) -> Watcher:
    return Watcher(run, CompanionJobs(scheduler, local_spec(run)), wanted)


def weights_of(step: int, attempt: int = 1) -> str:
    return hashlib.sha256(f"{step} by {attempt}".encode()).hexdigest()


def commit(run: Path, step: int, attempt: int = 1) -> Path:
    folder = run / "checkpoints" / f"step-{step:08d}.attempt-{attempt}"
    folder.mkdir(parents=True)
    (folder / "COMMIT").write_text(weights_of(step, attempt))
    return folder


def evaluation_of(scheduler: FolderScheduler, name: str) -> tuple[Evaluation, str]:
    """The evaluation that a job does, and its checkpoint."""
    values = dict(override.split("=", 1) for override in scheduler.waiting()[name])
    checkpoint = Path(values["task.checkpoint"].strip("'"))
    step = int(checkpoint.name.removeprefix("step-").partition(".")[0])
    weights = (checkpoint / "COMMIT").read_text()
    return Evaluation(checkpoint.parents[1], step, weights, values["task.evals"].strip("[']")), checkpoint.name


def evaluate(scheduler: FolderScheduler, name: str, ade: float = 1.0) -> bool:
    """Do a job as the task does, and let the scheduler forget it. Returns whether the job held the claim."""
    evaluation, checkpoint = evaluation_of(scheduler, name)
    mine = evaluation.results() is None and evaluation.claim(int(name[-1]), f"{name} {random.random()}")
    if mine:
        with (evaluation.run / "evaluated.txt").open("a") as lines:
            lines.write(f"{evaluation.step} {evaluation.suite}\n")
        evaluation.finish({"checkpoint": checkpoint, "figures": {"drive/ade": ade}})
    (scheduler.queue / f"{name}.json").unlink()
    return mine


def fail(scheduler: FolderScheduler, name: str) -> None:
    """End a job before it has done anything."""
    (scheduler.queue / f"{name}.json").unlink()


@pytest.fixture
def scheduler(tmp_path: Path) -> FolderScheduler:
    return FolderScheduler(tmp_path / "scheduler")


def test_a_checkpoint_is_evaluated_when_its_commit_is_there(tmp_path: Path, scheduler: FolderScheduler) -> None:
    (tmp_path / "checkpoints" / "step-00000005.attempt-1").mkdir(parents=True)
    watcher = watcher_of(tmp_path, scheduler)
    assert watcher.look()
    assert scheduler.waiting() == {}
    (tmp_path / "checkpoints" / "step-00000005.attempt-1" / "COMMIT").touch()
    assert not watcher.look()
    assert len(scheduler.waiting()) == 2
    for name in scheduler.waiting():
        assert evaluate(scheduler, name)
    assert watcher.look()
    assert scheduler.waiting() == {}


@pytest.mark.fault("results of old weights")
def test_the_best_is_marked_and_another_takes_its_place(tmp_path: Path, scheduler: FolderScheduler) -> None:
    watcher = watcher_of(tmp_path, scheduler)
    steps = [(2, float("nan"), None), (5, 2.0, 5), (8, float("-inf"), 5), (10, 3.0, 5), (15, 1.5, 15)]
    for step, ade, best in steps:  # what is no finite number is never the best
        commit(tmp_path, step)
        watcher.look()
        for name in scheduler.waiting():
            evaluate(scheduler, name, ade)
        watcher.look()
        assert (read_json(tmp_path / "best.json") or {}).get("step") == best
    (tmp_path / "best.json").write_text('{"cut')
    watcher.look()
    marked = json.loads((tmp_path / "best.json").read_text())
    assert marked == {
        "step": 15,
        "checkpoint": "step-00000015.attempt-1",
        "weights": weights_of(15),
        "figure": "held_out/drive/ade",
        "value": 1.5,
    }


def test_a_step_saved_again_by_a_later_attempt_keeps_neither_its_evaluations_nor_its_place(
    tmp_path: Path, scheduler: FolderScheduler
) -> None:
    watcher = watcher_of(tmp_path, scheduler)

    def best_after(**ade: float) -> dict[str, Any] | None:
        watcher.look()
        for name in scheduler.waiting():
            _, checkpoint = evaluation_of(scheduler, name)
            assert evaluate(scheduler, name, ade[checkpoint.partition(".")[2].replace("-", "_")])
        watcher.look()
        return read_json(tmp_path / "best.json")

    commit(tmp_path, 5)
    commit(tmp_path, 10)
    (tmp_path / "checkpoints" / "attempts").mkdir()
    first = best_after(attempt_1=1.0)
    assert first is not None
    assert first["weights"] == weights_of(10)

    # Attempt 2 goes on from step 5: step 10 of attempt 1 is off the run's history, even before it is saved again.
    resumed = {"attempt": 2, "chosen": "step-00000005.attempt-1", "step": 5, "outcome": "loaded"}
    write_json(tmp_path / "checkpoints" / "attempts" / "attempt-2.json", resumed)
    assert (best_after() or {})["weights"] == weights_of(5)
    commit(tmp_path, 10, attempt=2)
    assert [saved.folder.name for saved in checkpoints_of(tmp_path).values()] == [
        "step-00000005.attempt-1",
        "step-00000010.attempt-2",
    ]
    assert (best_after(attempt_2=2.0) or {})["weights"] == weights_of(5)
    assert len((tmp_path / "evaluated.txt").read_text().splitlines()) == 6, "three checkpoints by two suites"
    assert (Evaluation(tmp_path, 10, weights_of(10, 2), "held_out").results() or {})["figures"] == {"drive/ade": 2.0}

    shutil.rmtree(tmp_path / "checkpoints" / "step-00000005.attempt-1")
    assert (best_after() or {})["weights"] == weights_of(10, 2), "of the checkpoints that exist"
    (tmp_path / "checkpoints" / "step-00000010.attempt-2" / "COMMIT").write_text(weights_of(10, 3))
    watcher.look()
    assert not (tmp_path / "best.json").exists()
    assert len(scheduler.waiting()) == 2


@pytest.mark.fault("results of old weights")
def test_results_of_other_weights_are_none(tmp_path: Path) -> None:
    evaluation = Evaluation(tmp_path, 5, weights_of(5), "held_out")
    other = Evaluation(tmp_path, 5, f"{weights_of(5)[:12]}{'0' * 52}", "held_out")
    assert other.folder == evaluation.folder
    assert evaluation.finish({"figures": {}})
    assert evaluation.results() is not None
    assert other.results() is None


def test_a_job_that_fails_is_tried_again_and_given_up_in_the_end(
    tmp_path: Path, scheduler: FolderScheduler, caplog: pytest.LogCaptureFixture
) -> None:
    commit(tmp_path, 5)
    watcher = watcher_of(tmp_path, scheduler, Wanted(("held_out",), "held_out", "drive/ade", "min"))
    names = []
    for _ in range(TRIES):
        assert not watcher.look()
        (name,) = scheduler.waiting()
        names.append(name)
        fail(scheduler, name)
    assert len(set(names)) == TRIES
    assert watcher.look()
    assert watcher.look()
    assert scheduler.waiting() == {}
    assert "giving up held_out of step 5" in caplog.text


def test_submitted_but_not_recorded_is_not_submitted_again(tmp_path: Path, scheduler: FolderScheduler) -> None:
    commit(tmp_path, 5)
    watcher_of(tmp_path, scheduler).look()
    notes = list((tmp_path / "evaluations").rglob("*.submitted-1.json"))
    assert len(notes) == 2
    notes[0].unlink()  # as if the watcher had been killed before it
    watcher_of(tmp_path, scheduler).look()
    assert notes[0].is_file()
    for name in scheduler.waiting():
        evaluate(scheduler, name)
    notes[1].unlink()  # and now the scheduler has forgotten the job, too
    assert watcher_of(tmp_path, scheduler).look()
    assert len((tmp_path / "scheduler" / "submitted.txt").read_text().splitlines()) == 2


def test_of_two_jobs_of_one_try_one_evaluates(tmp_path: Path) -> None:
    evaluation = Evaluation(tmp_path, 5, weights_of(5), "held_out")
    assert evaluation.claim(1, "slurm job 7")
    assert not evaluation.claim(1, "slurm job 8")
    assert evaluation.claim(1, "slurm job 7"), "a job that the scheduler requeued continues"
    assert evaluation.claim(2, "slurm job 8")
    assert evaluation.finish({"figures": {}})
    assert not evaluation.finish({"figures": {"drive/ade": 1.0}})
    assert (evaluation.results() or {})["figures"] == {}


def test_a_scheduler_that_cannot_tell_is_not_taken_for_one_that_has_no_job(tmp_path: Path) -> None:
    class Silent(FolderScheduler):
        def find(self, name: str) -> str | None:
            raise OSError("no answer from the controller")

    commit(tmp_path, 5)
    silent = Silent(tmp_path / "scheduler")
    with pytest.raises(OSError, match="no answer"):
        watcher_of(tmp_path, silent).look()
    assert silent.waiting() == {}


def test_one_watcher_a_run(tmp_path: Path) -> None:
    with (
        watcher_lock(tmp_path, 0.0),
        pytest.raises(WatchError, match="another watcher looks after this run"),
        watcher_lock(tmp_path, 0.3),
    ):
        pass
    with watcher_lock(tmp_path, 0.0):
        pass


def test_a_run_is_finished_when_its_last_attempt_came_to_the_end(tmp_path: Path) -> None:
    def write(*events: dict[str, str]) -> None:
        (tmp_path / "attempts.jsonl").write_text("".join(f"{json.dumps(event)}\n" for event in events))

    assert not finished(tmp_path)
    write({"event": "start"}, {"event": "end", "outcome": "RuntimeError"})
    assert not finished(tmp_path)
    write({"event": "start"}, {"event": "end", "outcome": "finished"})
    assert finished(tmp_path)
    write({"event": "start"}, {"event": "end", "outcome": "finished"}, {"event": "start"})
    assert not finished(tmp_path)


def test_what_is_wanted_is_what_the_run_evaluates(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(WatchError, match=r"recipe.yaml: not there"):
        wanted_of(tmp_path, None, None, "min")
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({"evals": {"held_out": {}, "zero_shot": {}}}))
    assert wanted_of(tmp_path, None, None, "min") == WANTED
    assert wanted_of(tmp_path, ["zero_shot"], "zero_shot/answer/right", "max").figure == "answer/right"
    assert main(["--folder", str(tmp_path), "--evals", "held_ou", "--once"]) == 2
    assert "no evaluation held_ou; there are: held_out, zero_shot" in capsys.readouterr().err
    with pytest.raises(WatchError, match="give EVAL/METRIC"):
        wanted_of(tmp_path, None, "ade", "min")
    assert main(["--folder", str(tmp_path / "none")]) == 2
    assert "none: no such folder" in capsys.readouterr().err


def test_what_was_asked_for_before_holds_until_something_else_is(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({"evals": {"held_out": {}, "zero_shot": {}}}))
    asked = Wanted(("zero_shot",), "zero_shot", "answer/right", "max")
    asked.write(tmp_path)
    assert wanted_of(tmp_path, None, None, "min") == asked
    assert wanted_of(tmp_path, ["held_out"], None, "min").suites == ("held_out",)


@pytest.mark.parametrize("suite", ["held_out", "Every.Road! (at night)", "x" * 300])
def test_names_of_jobs_are_names_everywhere_and_no_two_the_same(tmp_path: Path, suite: str) -> None:
    run = tmp_path / "run.seed=0,data.mixture='a b'"
    evaluation = Evaluation(run, 123456789, weights_of(1), suite)
    name = evaluation.job_name(2)
    assert len(name) <= 63
    assert set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")
    assert name[0].isalpha()
    assert name[-1].isalnum()
    others = [replace(evaluation, step=12345678), replace(evaluation, weights=weights_of(2))]
    others += [replace(evaluation, run=tmp_path), replace(evaluation, suite=f"{suite}.")]
    assert name not in [evaluation.job_name(1), *(other.job_name(2) for other in others)]


@pytest.mark.attack("rendering", "any text as an override of an evaluation job", "read as it was")
@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n\r\0"), max_size=30))
def test_whatever_is_quoted_is_read_as_it_was(text: str) -> None:
    (override,) = OverridesParser.create().parse_overrides([f"task.evals=[{quoted(text)}]"])
    assert override.value() == [text.replace("${", "\\${")]


def test_the_overrides_of_a_job(tmp_path: Path) -> None:
    overrides = evaluation_overrides(
        Evaluation(tmp_path, 5, weights_of(5), "held_out"), 2, "step-00000005.attempt-1", tmp_path / "own"
    )
    assert overrides[0] == "recipe=evaluate"
    assert overrides[2:] == [
        f"run.folder='{tmp_path}/own'",
        f"task.checkpoint='{tmp_path}/checkpoints/step-00000005.attempt-1'",
        "task.evals=['held_out']",
        "task.attempt=2",
    ]


@pytest.mark.guarantee(
    "Every checkpoint is evaluated exactly once per evaluator, even if the watcher is killed ten times"
)
@pytest.mark.slow
def test_killed_ten_times_at_random_each_evaluation_is_done_exactly_once(tmp_path: Path) -> None:
    random.seed(6)
    scheduler, over = FolderScheduler(tmp_path / "scheduler"), threading.Event()
    steps, suites = range(5, 155, 5), ("held_out", "zero_shot", "night")

    def train() -> None:
        for step in steps:
            commit(tmp_path, step)
            time.sleep(random.uniform(0.0, 1.0))
        (tmp_path / "attempts.jsonl").write_text(json.dumps({"event": "end", "outcome": "finished"}) + "\n")

    def run_jobs() -> None:
        while not over.is_set():
            for name in scheduler.waiting():
                if random.random() < 0.01 and name in evaluation_of(scheduler, name)[0].submissions()[:1]:
                    fail(scheduler, name)
                elif random.random() < 0.04:
                    evaluate(scheduler, name, ade=random.random())
            time.sleep(random.uniform(0.0, 0.1))

    def submitted() -> list[str]:
        file = tmp_path / "scheduler" / "submitted.txt"
        return file.read_text().splitlines() if file.is_file() else []

    threads = [threading.Thread(target=train), threading.Thread(target=run_jobs)]
    for thread in threads:
        thread.start()
    command = [sys.executable, "-m", "tests.launch.eval_jobs.toy_watch", str(tmp_path), *suites]
    try:
        for _ in range(10):
            before = len(submitted())
            with subprocess.Popen(command, cwd=REPOSITORY) as watcher:
                while len(submitted()) == before:  # it is at work
                    assert watcher.poll() is None
                    time.sleep(0.005)
                time.sleep(random.uniform(0.0, 0.5))
                watcher.send_signal(signal.SIGKILL)
            assert watcher.returncode == -signal.SIGKILL
        last = subprocess.run(command, cwd=REPOSITORY, timeout=120, check=False)
    finally:
        threads[0].join()
        over.set()
        threads[1].join()
    assert last.returncode == 0
    assert len(submitted()) == len(set(submitted())), "a job was submitted that had been submitted before"
    done = (tmp_path / "evaluated.txt").read_text().splitlines()
    assert sorted(done) == sorted(f"{step} {suite}" for step in steps for suite in suites)
    assert (tmp_path / "best.json").is_file()
