"""Trials that are jobs: batches, results told from inside the jobs, and a killed search."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from framework.__main__ import main
from framework.launch import study_jobs
from framework.launch.study import Study
from framework.launch.study_jobs import run_as_jobs
from framework.launch.submissions import record_submission, submissions
from framework.launch.trial_job import reporting_to_study
from framework.recipe.catalogue import Catalogue
from framework.recipe.problem import Origin, Problem, RecipeError
from framework.recipe.search import read_search
from framework.run.trial import report_metrics
from tests.launch.conftest import SEARCHED, Cluster, lay
from tests.launch.specimens import spec

pytest.importorskip("optuna", reason="optuna is not installed: the extra `search`")

METRIC = "held_out/drive/ade"


class Killed(BaseException):
    """Ends the process like a kill: nothing after it runs."""


@dataclass
class Jobs:
    """A scheduler that runs a job when it is first asked for it, and has it once more when that is over: jobs outlive
    what they run by a moment, in which no other may have their name. `task` gets a trial's name and its overrides.
    """

    folder: Path
    task: Callable[[str, tuple[str, ...]], None]
    waiting: dict[str, tuple[str, tuple[str, ...]]] = field(default_factory=dict)
    batches: list[list[str]] = field(default_factory=list)
    stems: list[str] = field(default_factory=list)
    ending: set[str] = field(default_factory=set)

    def compose(self, overrides: tuple[str, ...], name: str) -> Any:
        if "x=bad" in overrides:
            raise RecipeError([Problem(Origin("command line"), "x", "bad")])
        return name, overrides

    def submit(self, runs: Sequence[Any], stem: str) -> None:
        assert not self.ending, "it is submitted already"
        self.batches.append([name for name, _ in runs])
        self.stems.append(stem)
        for element, (name, overrides) in enumerate(runs):
            job = f"{len(self.batches)}_{element}"
            spec(folder=str(self.folder / name)).save()
            record_submission(self.folder / name, "slurm", job, self.folder / stem)
            self.waiting[job] = name, overrides

    def is_active(self, job: str) -> bool:
        if (run := self.waiting.pop(job, None)) is not None:
            name, overrides = run
            try:
                with reporting_to_study(self.folder / name, attempt=1):
                    self.task(name, overrides)
            except RuntimeError:
                pass  # the job fails; its scheduler knows that it is gone, and no more
            self.ending.add(job)
            return True
        self.ending.discard(job)
        return False


@pytest.fixture
def search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Study, Jobs]]:
    """Makes a study in the test's folder, and jobs that run a task."""
    monkeypatch.setattr(study_jobs, "POLL_S", 0.0)

    def make(task: Callable[[str, tuple[str, ...]], None], *words: str) -> tuple[Study, Jobs]:
        jobs = Jobs(tmp_path, task)
        monkeypatch.setattr(study_jobs, "scheduler_of", lambda spec: jobs)
        asked = ("x=interval(-2,2)", "hydra.sweeper.sampler=random", *words)
        return Study(read_search(asked), "demo", tmp_path, METRIC, "minimize"), jobs

    return make


def square(name: str, overrides: tuple[str, ...]) -> None:
    report_metrics({METRIC: float(overrides[0].removeprefix("x=")) ** 2}, 10)


def run(study: Study, jobs: Jobs) -> list[Any]:
    return run_as_jobs(study, jobs.folder, jobs.compose, jobs.submit)


def test_each_batch_is_one_array_and_its_trials_are_ranked(search) -> None:
    study, jobs = search(square, "hydra.sweeper.n_trials=5", "hydra.sweeper.n_jobs=2")
    rows = run(study, jobs)
    assert jobs.batches == [["trial-0000", "trial-0001"], ["trial-0002", "trial-0003"], ["trial-0004"]]
    assert len(set(jobs.stems)) == 3, "a batch does not overwrite what another one submitted"
    figures = [row.value for row in rows]
    assert figures == sorted(figures)
    assert figures == [float(row.overrides[0].removeprefix("x=")) ** 2 for row in rows]


@pytest.mark.parametrize("moment", ["before a batch is submitted", "while its jobs run"])
def test_a_killed_search_continues_and_repeats_nothing(search, moment: str, monkeypatch) -> None:
    words = ("hydra.sweeper.n_trials=6", "hydra.sweeper.n_jobs=2")
    study, jobs = search(square, *words)

    submit = jobs.submit

    def submits(runs: Sequence[Any], stem: str) -> None:
        if len(jobs.batches) == 1:
            if moment == "while its jobs run":
                submit(runs, stem)
            raise Killed
        submit(runs, stem)

    monkeypatch.setattr(jobs, "submit", submits)
    with pytest.raises(Killed):
        run(study, jobs)
    study, again = search(square, *words)
    again.waiting = jobs.waiting
    again.batches = jobs.batches
    assert len(run(study, again)) == 6
    ran = [name for batch in again.batches for name in batch]
    assert sorted(ran) == [f"trial-{number:04d}" for number in range(6)]
    assert all(len(submissions(again.folder / name)) == 1 for name in ran)
    batches = len(again.batches)
    assert len(run(*search(square, *words))) == 6
    assert len(again.batches) == batches, "a finished study submits nothing"


def test_what_became_of_a_trial_is_told(search) -> None:
    outcomes = [1.0, math.nan, RuntimeError("no memory"), None]

    def task(name: str, overrides: tuple[str, ...]) -> None:
        outcome = outcomes[int(name.removeprefix("trial-"))]
        if isinstance(outcome, Exception):
            raise outcome
        if outcome is not None:
            report_metrics({METRIC: outcome}, 10)

    study, jobs = search(task, "hydra.sweeper.n_trials=4", "hydra.sweeper.n_jobs=4")
    rows = {row.number: row for row in run(study, jobs)}
    assert [rows[number].state for number in range(4)] == ["complete", "non-finite", "failed", "failed"]
    assert "job 1_2 ended without a result; see" in rows[2].note
    assert f"the run reported no {METRIC}" in rows[3].note


def test_a_poor_trial_ends_inside_its_job(search) -> None:
    reached = []

    def task(name: str, overrides: tuple[str, ...]) -> None:
        number = int(name.removeprefix("trial-"))
        for step in (10, 20):
            report_metrics({METRIC: 100.0 if number == 5 else 1.0}, step)
        reached.append(number)

    study, jobs = search(task, "hydra.sweeper.n_trials=6", "hydra.sweeper.n_jobs=2")
    rows = {row.number: row for row in run(study, jobs)}
    assert reached == [0, 1, 2, 3, 4]
    assert rows[5].state == "pruned"
    assert "pruned at step 10" in rows[5].note


def test_all_ranks_end_at_the_report_at_which_the_first_is_pruned(search, monkeypatch) -> None:
    seen: list[str] = []

    def task(name: str, overrides: tuple[str, ...]) -> None:
        report_metrics({METRIC: 100.0 if name == "trial-0005" else 1.0}, 10)

    study, jobs = search(task, "hydra.sweeper.n_trials=6", "hydra.sweeper.n_jobs=6")
    run(study, jobs)
    monkeypatch.setenv("RANK", "1")
    for name in ("trial-0000", "trial-0005"):
        with reporting_to_study(jobs.folder / name, attempt=1):
            report_metrics({METRIC: 0.0}, 10)
            seen.append(name)
    assert seen == ["trial-0000"]


def test_draws_that_no_recipe_takes_fail_alone(search) -> None:
    study, jobs = search(square, "hydra.sweeper.n_trials=3", "hydra.sweeper.n_jobs=3")
    compose, refused = jobs.compose, []

    def refuses(overrides: tuple[str, ...], name: str) -> Any:
        if name == "trial-0001":
            refused.append(name)
            overrides = ("x=bad",)
        return compose(overrides, name)

    jobs.compose = refuses  # type: ignore[method-assign]
    assert [row.state for row in run(study, jobs)] == ["complete", "complete", "failed"]
    assert jobs.batches == [["trial-0000", "trial-0002"]]


@pytest.mark.attack("folder", "a study's storage with credentials", "refused")
def test_a_storage_with_credentials_is_refused(search) -> None:
    study, jobs = search(square)
    study.storage = "mysql://me:secret@host/studies"
    with pytest.raises(RecipeError, match="credentials"):
        run(study, jobs)


@pytest.mark.parametrize(
    ("words", "refused"),
    [
        (["hydra.sweeper.n_jobs=2"], "hydra.sweeper.n_jobs: trials run here one after another"),
        (["task.xx=interval(0,1)"], "task.xx: "),
        (["launch=slurm", "launch.dry_run=true"], "launch.dry_run: which trials a search submits"),
        (
            ["launch=pytorchjob", "launch.namespace=a", "launch.image=a", "launch.claim=a", "launch.mount=/"],
            "launch: a search runs its trials here (leave launch out) or as job arrays (launch=slurm)",
        ),
    ],
)
def test_what_a_search_cannot_do_is_refused(
    checkout: Path, cluster: Cluster, tmp_path: Path, monkeypatch, capsys, words: list[str], refused: str
) -> None:
    monkeypatch.chdir(checkout)
    lay(checkout, SEARCHED)
    asked = ["recipe=trial", "task.x=interval(0,1)", "hydra/sweeper=optuna", f"paths.runs={tmp_path}/runs", "-m"]
    assert main([*asked, *words], Catalogue(checkout)) == 2
    assert refused in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()
