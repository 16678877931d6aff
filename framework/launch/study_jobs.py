"""A study whose trials are jobs: each batch of trials is one job array.

Trials report and end by themselves (`framework.launch.trial_job`). The process here draws, submits and waits. Where it
is killed its jobs go on; started again, it waits for them and draws the rest.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from framework.launch.schedulers.registry import scheduler_of
from framework.launch.spec import load
from framework.launch.study import Study, TrialRow, tell, trial_name
from framework.launch.submissions import submissions
from framework.launch.trial_job import TrialLink
from framework.recipe.overrides import COMMAND_LINE
from framework.recipe.problem import Problem, RecipeError
from framework.run.files import read_records
from framework.run.layout import FAILURES_FILE, JOB_LOG_FILE

if TYPE_CHECKING:
    import optuna

    from framework.recipe.composition import Composition

log = logging.getLogger(__name__)

POLL_S = 5.0
"""How often (s) the scheduler is asked for the jobs of a batch."""

Compose = Callable[[tuple[str, ...], str], "Composition"]
"""Composes the overrides of a trial under a name. Raises `RecipeError`."""
SubmitBatch = Callable[[Sequence["Composition"], str], object]
"""Submits runs as one job, whose file has the given stem. Raises `RecipeError`."""


def run_as_jobs(study: Study, folder: Path, compose: Compose, submit_batch: SubmitBatch) -> list[TrialRow]:
    """Run trials in batches of `n_jobs` until the study has as many as were asked for; returns all, best first.

    `folder` holds the trials' folders. Raises `RecipeError` where a batch is refused, and once more trials failed than
    `max_failure_rate` allows.
    """
    if "@" in study.storage:
        message = "has credentials, which jobs would read from a file; give a journal that all nodes share"
        raise RecipeError([Problem(COMMAND_LINE, "hydra.sweeper.storage", message)])
    wanted, size = study.wanted(), study.search.settings.n_jobs or 1
    while True:
        batch = _wait(study, folder)  # after a kill: trials that were drawn and not submitted
        study.refuse_failures()
        missing = wanted - len(study.finished()) - len(batch)
        batch += [study.draw() for _ in range(min(missing, size - len(batch)))]
        if not batch:
            return study.rows()
        _submit(study, folder, batch, compose, submit_batch)


def _submit(
    study: Study, folder: Path, batch: Sequence[optuna.trial.Trial], compose: Compose, submit_batch: SubmitBatch
) -> None:
    import optuna

    compositions = []
    for trial in batch:
        try:
            compositions.append(compose(study.overrides(trial), trial_name(trial.number)))
        except RecipeError as error:  # what was drawn cannot run; the others can
            note = f"failed: {error}".splitlines()[0]
            tell(study.study, trial, optuna.trial.TrialState.FAIL, note=note)
            continue
        link = TrialLink(study.storage, study.name, trial._trial_id, study.metric, study.search.settings.prune)
        link.save(folder / trial_name(trial.number))
    if compositions:
        submit_batch(compositions, f"job.{trial_name(batch[0].number)}")


def _wait(study: Study, folder: Path) -> list[optuna.trial.Trial]:
    """Wait until no job of an unfinished trial, or of the newest batch, is left; returns the trials that were never
    submitted.

    A trial whose job is gone without a result has failed. One that has reported its result may still have a job, which
    ends a moment later: until then the scheduler takes no other job of the name.
    """
    import optuna

    while True:
        trials = study.study.get_trials(deepcopy=False)
        newest = trials[-(study.search.settings.n_jobs or 1) :]
        running = [trial for trial in trials if trial.state == optuna.trial.TrialState.RUNNING]
        jobs = {trial.number: _job(folder, trial.number) for trial in [*running, *newest]}
        active = _active(folder, jobs)
        if active is not None and not any(active.values()):
            break
        time.sleep(POLL_S)
    # A trial that ended between the two looks is told apart from one whose job died by looking again.
    unsubmitted = []
    for trial in study.unfinished():
        job = jobs.get(trial.number)
        if job is None:
            unsubmitted.append(trial)
        else:
            note = f"failed: job {job} ended without a result{_why(folder / trial_name(trial.number))}"
            tell(study.study, trial, optuna.trial.TrialState.FAIL, note=note)
    return unsubmitted


def _why(folder: Path) -> str:
    """What the supervisors say of the last failed attempt of the run in `folder`, else where to look."""
    failures = read_records(folder / FAILURES_FILE)
    why = str(failures[-1].get("why", "")).splitlines() if failures else []
    return f": {why[0]}" if why else f"; see {folder / JOB_LOG_FILE}"


def _job(folder: Path, number: int) -> str | None:
    """The last job of a trial's run; None where it was not submitted."""
    submitted = submissions(folder / trial_name(number))
    return str(submitted[-1]["job"]) if submitted else None


def _active(folder: Path, jobs: Mapping[int, str | None]) -> dict[int, bool] | None:
    """Which trials' jobs wait or run; None where the scheduler does not answer, which is no news of any."""
    try:
        return {
            number: job is not None and scheduler_of(load(folder / trial_name(number))).is_active(job)
            for number, job in jobs.items()
        }
    except OSError as error:
        log.warning("the jobs of the search: %s; asked again in %.0f s", error, POLL_S)
        return None
