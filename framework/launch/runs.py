"""Manages submitted runs: `python -m framework status|logs|stop|resume RUN`, with RUN a run's folder or its name below
outputs/runs.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from framework.launch.schedulers.base import Scheduler
from framework.launch.schedulers.registry import scheduler_of
from framework.launch.spec import SpecError, load
from framework.launch.submissions import record_submission, submissions
from framework.launch.submit import locked
from framework.recipe.overrides import COMMAND_LINE
from framework.recipe.problem import Problem, RecipeError, nearest
from framework.run.drops import describe_drops, read_drop_counts
from framework.run.files import read_records
from framework.run.heartbeat import Heartbeat, parse_heartbeat
from framework.run.layout import ATTEMPTS_FILE, EVALUATIONS, JOB_FILE, JOB_LOG_FILE, RUNS, WANTED_FILE

TAIL_BYTES = 100_000
LINES = 50
HEADINGS = ("run", "job", "state", "attempts", "step", "loss", "reward")
"""Columns of the table that `status` prints."""
UNREADABLE = (OSError, ValueError, TypeError, KeyError, RecursionError)
"""What a damaged file of a run, or a scheduler that does not answer, raises. It must not hide the other runs."""


@dataclass(frozen=True)
class SubmittedRun:
    """A run and its last submission."""

    folder: Path
    """The run's folder."""
    scheduler: Scheduler
    """The scheduler that has its jobs."""
    job: str
    """Its last job."""
    file: Path
    """What was submitted, as the scheduler's own text."""


def status(names: Sequence[str]) -> int:
    """Print one line for each run, without names for all: job, state, attempts, step, loss and reward of the newest
    heartbeat. One run that cannot be read does not hide the others: its problem goes to stderr, and where it was asked
    for by name, the exit code is 2.
    """
    runs, problems = _readable(_named(names) if names else _folders())
    for problem in problems:
        print(problem, file=sys.stderr)
    rows: list[tuple[str, ...]] = [HEADINGS]
    for run in runs:
        try:
            rows.append(_row(run))
        except UNREADABLE as error:
            print(f"{run.folder}: cannot be read: {error}", file=sys.stderr)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())
    for run in runs:
        if counts := read_drop_counts(run.folder):
            what = _printable(describe_drops(counts))
            print(f"{run.folder}: its coordinator dropped what does not belong to the run: {what}")
    return 2 if names and problems else 0


def _row(run: SubmittedRun) -> tuple[str, ...]:
    beat = _newest_heartbeat(run.folder)
    progress = [str(beat.step), f"{beat.loss:.4g}"] if beat else ["", ""]
    progress += [f"{beat.reward:.4g}"] if beat and beat.reward is not None else []
    cells = [str(run.folder), run.job, _state(run), str(_attempts(run.folder)), *progress]
    return tuple(map(_printable, cells + [""] * (len(HEADINGS) - len(cells))))


def _state(run: SubmittedRun) -> str:
    """The job's state by its scheduler, or by the run's own ledger where the scheduler has forgotten it or does not
    answer.
    """
    try:
        state = run.scheduler.state(run.job)
    except UNREADABLE as error:
        print(f"{run.folder}: the state of job {_printable(run.job)}: {error}", file=sys.stderr)
        state = None
    return state or _outcome(run.folder)


def logs(names: Sequence[str]) -> int:
    """Print the last lines of each run's log."""
    for run in _find(names):
        file = run.folder / JOB_LOG_FILE
        text = _tail(file) if file.is_file() else run.scheduler.log(run.job)
        print("\n".join(text.splitlines()[-LINES:]))
    return 0


def stop(names: Sequence[str]) -> int:
    """End the runs' jobs; they save first. One run that cannot be stopped does not keep the others going: its problem
    is raised at the end, as `RecipeError`.
    """
    runs, problems = _readable(_named(names))
    for run in runs:
        try:
            for job in _active(run):
                run.scheduler.stop(job)
                print(f"{run.folder}: job {job} is stopping")
        except UNREADABLE as error:
            problems += _problem(f"{run.folder}: {error}").problems
    if problems:
        raise RecipeError(problems)
    return 0


def resume(names: Sequence[str]) -> int:
    """Submit the runs again as they were, with the same code and environment. Raises `RecipeError` where a job of
    theirs is pending or running.
    """
    for run in _find(names):
        with locked(run.folder):
            if active := _active(run):
                raise _problem(f"{run.folder}: its job {active[0]} waits or runs; stop it first")
            job = run.scheduler.resubmit(run.file.read_text(encoding="utf-8"), run.job)
            record_submission(run.folder, run.scheduler.name, job, run.file)
            print(f"{run.folder}: job {job}")
    return 0


def _folders() -> list[Path]:
    """The folders of all submitted runs below `RUNS`; evaluation jobs lie within their run's folder and are no runs."""
    return [folder for folder in sorted(file.parent for file in RUNS.rglob(JOB_FILE)) if not _is_evaluation(folder)]


def _is_evaluation(folder: Path) -> bool:
    """Whether a job below `RUNS` evaluates a run that has it in its folder. A run's own name may hold that word."""
    above = folder.relative_to(RUNS).parents
    evaluations = (RUNS / each for each in above if each.name == EVALUATIONS)
    return any((each.parent / JOB_FILE).is_file() or (each / WANTED_FILE).is_file() for each in evaluations)


def _readable(folders: Iterable[Path]) -> tuple[list[SubmittedRun], list[Problem]]:
    """The submitted runs in `folders`, and why others cannot be read."""
    runs, problems = list[SubmittedRun](), list[Problem]()
    for folder in folders:
        try:
            runs.append(_last(folder))
        except RecipeError as error:
            problems += error.problems
    return runs, problems


def _find(names: Iterable[str]) -> list[SubmittedRun]:
    """The runs of those names. Raises `RecipeError` with every name that is no submitted run, or that of one that
    cannot be read.
    """
    runs, problems = _readable(_named(names))
    if problems:
        raise RecipeError(problems)
    return runs


def _named(names: Iterable[str]) -> list[Path]:
    """The folders of the runs of those names. Raises `RecipeError` with every name that is no submitted run."""
    folders, problems = [], []
    known = [str(folder.relative_to(RUNS)) for folder in _folders()]
    for name in names:
        folder = next((each for each in (Path(name), RUNS / name) if _was_submitted(each)), None)
        if folder is None:
            message = f"no run {name!r} was submitted from here; there are: {', '.join(known) or 'none'}"
            problems.append(Problem(COMMAND_LINE, "", message, nearest(name, known)))
        else:
            folders.append(folder)
    if problems:
        raise RecipeError(problems)
    return folders


def _was_submitted(folder: Path) -> bool:
    try:
        return (folder / JOB_FILE).is_file()
    except OSError:  # a name longer than a file may have
        return False


def _last(folder: Path) -> SubmittedRun:
    try:
        entries = submissions(folder)
    except OSError as error:
        raise _problem(f"{folder}: its submissions cannot be read: {error}; submit the recipe again") from error
    if not entries:
        raise _problem(f"{folder}: its submission was interrupted before the job was recorded; submit the recipe again")
    try:
        scheduler = scheduler_of(load(folder))
    except SpecError as error:
        raise _problem(str(error)) from error
    return SubmittedRun(folder, scheduler, entries[-1]["job"], Path(entries[-1]["file"]))


def _printable(text: str) -> str:
    """`text` without what would move a terminal's cursor or start a line."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def _active(run: SubmittedRun) -> list[str]:
    """The run's pending and running jobs; a run submitted by stages may have several."""
    jobs = dict.fromkeys(entry["job"] for entry in submissions(run.folder))
    return [job for job in jobs if run.scheduler.is_active(job)]


def _problem(message: str) -> RecipeError:
    return RecipeError([Problem(COMMAND_LINE, "", message)])


def _attempts(folder: Path) -> int:
    return sum(entry.get("event") == "start" for entry in read_records(folder / ATTEMPTS_FILE))


def _outcome(folder: Path) -> str:
    """How the last attempt ended by the run's own ledger, once the scheduler has forgotten the job."""
    entries = read_records(folder / ATTEMPTS_FILE)
    return str(entries[-1].get("outcome", "lost")) if entries else "not started"


def _newest_heartbeat(folder: Path) -> Heartbeat | None:
    file = folder / JOB_LOG_FILE
    lines = reversed(_tail(file).splitlines()) if file.is_file() else iter(())
    return next((beat for line in lines if (beat := parse_heartbeat(line))), None)


def _tail(file: Path) -> str:
    with file.open("rb") as log:
        log.seek(max(0, file.stat().st_size - TAIL_BYTES))
        return log.read().decode("utf-8", "replace")


VERBS: dict[str, Callable[[Sequence[str]], int]] = {"status": status, "logs": logs, "stop": stop, "resume": resume}
