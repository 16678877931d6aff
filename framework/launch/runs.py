"""What becomes of submitted runs: `python -m framework status|logs|stop|resume RUN`, a run's folder or its name below
outputs/runs.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from framework.launch.launcher import SCHEDULERS, Jobs
from framework.launch.submit import locked, record, submissions
from framework.recipe.overrides import COMMAND_LINE
from framework.recipe.problem import Problem, RecipeError, nearest
from framework.run.heartbeat import Heartbeat, parse_heartbeat
from framework.run.layout import ATTEMPTS_FILE, JOB_FILE, JOB_LOG_FILE

RUNS = Path("outputs/runs")
TAIL_BYTES = 100_000
LINES = 50


@dataclass(frozen=True)
class Submitted:
    """A run that was submitted: its folder, and its last job: who took it, what it is called there, and from which
    file.
    """

    folder: Path
    scheduler: str
    job: str
    file: Path

    @property
    def jobs(self) -> Jobs:
        """What took the job."""
        return SCHEDULERS[self.scheduler]


def status(names: Sequence[str]) -> int:
    """One line for each run, all there are without names: job, state, attempts, step and loss of the newest
    heartbeat.
    """
    found = _find(names) if names else [_last(file.parent) for file in sorted(RUNS.rglob(JOB_FILE))]
    rows = [("run", "job", "state", "attempts", "step", "loss")]
    for run in found:
        state = run.jobs.state(run.job) or _outcome(run.folder)
        beat = _newest_heartbeat(run.folder)
        trained = (str(beat.step), f"{beat.loss:.4g}") if beat else ("", "")
        rows.append((str(run.folder), run.job, state, str(_attempts(run.folder)), *trained))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())
    return 0


def logs(names: Sequence[str]) -> int:
    """The last lines of each run's log."""
    for run in _find(names):
        file = run.folder / JOB_LOG_FILE
        text = _tail(file) if file.is_file() else run.jobs.log(run.job)
        print("\n".join(text.splitlines()[-LINES:]))
    return 0


def stop(names: Sequence[str]) -> int:
    """End the runs' jobs; they save first."""
    for run in _find(names):
        for job in _living(run):
            run.jobs.stop(job)
            print(f"{run.folder}: job {job} is told to end")
    return 0


def resume(names: Sequence[str]) -> int:
    """Submit the runs again as they were, code and environment included. Raises `RecipeError` where a job of theirs
    lives.
    """
    for run in _find(names):
        with locked(run.folder):
            if living := _living(run):
                raise _problem(f"{run.folder}: its job {living[0]} waits or runs; stop it first")
            job = run.jobs.again(run.file.read_text(encoding="utf-8"), run.job)
            record(run.folder, run.scheduler, job, run.file)
            print(f"{run.folder}: job {job}")
    return 0


def _find(names: Iterable[str]) -> list[Submitted]:
    """The runs of those names. Raises `RecipeError` with all that are none, or were not submitted."""
    folders, problems = [], []
    known = [str(file.parent.relative_to(RUNS)) for file in RUNS.rglob(JOB_FILE)]
    for name in names:
        folder = next((each for each in (Path(name), RUNS / name) if (each / JOB_FILE).is_file()), None)
        if folder is None:
            message = f"no run {name!r} was submitted from here; there are: {', '.join(known) or 'none'}"
            problems.append(Problem(COMMAND_LINE, "", message, nearest(name, known)))
        else:
            folders.append(folder)
    if problems:
        raise RecipeError(problems)
    return [_last(folder) for folder in folders]


def _last(folder: Path) -> Submitted:
    noted = submissions(folder)
    if not noted:
        raise _problem(f"{folder}: its submission was interrupted before the job was noted; submit the recipe again")
    return Submitted(folder, noted[-1]["scheduler"], noted[-1]["job"], Path(noted[-1]["file"]))


def _living(run: Submitted) -> list[str]:
    """The run's jobs that wait or run: of one that was submitted by stages there may be several."""
    return [job for job in dict.fromkeys(each["job"] for each in submissions(run.folder)) if run.jobs.lives(job)]


def _problem(message: str) -> RecipeError:
    return RecipeError([Problem(COMMAND_LINE, "", message)])


def _attempts(folder: Path) -> int:
    file = folder / ATTEMPTS_FILE
    return file.read_text(encoding="utf-8").count('"event": "start"') if file.is_file() else 0


def _outcome(folder: Path) -> str:
    """How the last attempt ended, by the run's own notes: its job is forgotten."""
    file = folder / ATTEMPTS_FILE
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    last = json.loads(lines[-1]) if lines else {}
    return str(last.get("outcome", "not started" if not lines else "lost"))


def _newest_heartbeat(folder: Path) -> Heartbeat | None:
    file = folder / JOB_LOG_FILE
    lines = reversed(_tail(file).splitlines()) if file.is_file() else iter(())
    return next((beat for line in lines if (beat := parse_heartbeat(line))), None)


def _tail(file: Path) -> str:
    with file.open("rb") as log:
        log.seek(max(0, file.stat().st_size - TAIL_BYTES))
        return log.read().decode("utf-8", "replace")


VERBS: dict[str, Callable[[Sequence[str]], int]] = {"status": status, "logs": logs, "stop": stop, "resume": resume}
