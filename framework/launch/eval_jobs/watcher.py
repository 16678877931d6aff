"""The watcher of a run's evaluations: each committed checkpoint is put to each suite by one job, whatever dies.

python -m framework.launch.eval_jobs.watcher --folder RUN [--suites held_out zero_shot] [--best held_out/drive/ade]
    [--once]

It may be killed at any instant and started again, on any machine that sees the run's folder. A job has a name that
follows from run, step, suite and try. Before it is submitted, the scheduler is asked for a job of that name, and the
run's folder for what such a job would have left: its claim, its results. What slips through (a job that ended between
the two questions) is stopped by the job itself, which takes the claim before it does anything.
"""

from __future__ import annotations

import argparse
import json
import logging
import re
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from framework.launch.eval_jobs.companion import Scheduler, beside
from framework.launch.spec import SpecError
from framework.run.evaluations import (
    TRIES,
    Evaluation,
    Wanted,
    best_of,
    figure_of,
)
from framework.run.files import write_json
from framework.run.layout import (
    ATTEMPTS_FILE,
    BEST_FILE,
    CHECKPOINTS,
    EVALUATIONS,
    RECIPE_FILE,
    committed_steps,
    parse_step,
)
from framework.run.lock import taken

log = logging.getLogger(__name__)

LOOK_S = 10.0
"""So long a single look waits for another to be over."""


class WatchError(RuntimeError):
    """A run that cannot be watched; the message names the file and the remedy."""


class Watcher:
    """Has every checkpoint of the run in folder `run` evaluated by jobs of `scheduler`, as `wanted`."""

    def __init__(self, run: Path, scheduler: Scheduler, wanted: Wanted) -> None:
        self.run = run.resolve()
        self.scheduler = scheduler
        self.wanted = wanted
        self._figures: dict[int, float] = {}
        wanted.write(self.run)

    def look(self) -> bool:
        """See to every committed checkpoint once, mark the best. True when there is nothing left to wait for."""
        settled = True
        for step, checkpoint in checkpoints_of(self.run).items():
            for suite in self.wanted.suites:
                settled &= self._see_to(Evaluation(self.run, step, suite), checkpoint)
        self._mark_best()
        return settled

    def _see_to(self, evaluation: Evaluation, checkpoint: str) -> bool:
        """Take the evaluation one step further; True when it is settled."""
        if evaluation.settled:
            return True
        names = evaluation.submissions()
        if names and (self.scheduler.find(names[-1]) is not None or evaluation.settled):
            return False
        attempt = len(names) + 1
        if attempt > TRIES:
            evaluation.give_up(f"{TRIES} jobs ended without results: see their logs in {self._folder(evaluation)}")
            log.error("%s of step %d is given up: %d jobs failed", evaluation.suite, evaluation.step, TRIES)
            return True
        self._submit(evaluation, attempt, checkpoint)
        return False

    def _submit(self, evaluation: Evaluation, attempt: int, checkpoint: str) -> None:
        """Submit try `attempt`, unless a watcher that was killed before it could note it has done so."""
        name = evaluation.job_name(attempt)
        number = self.scheduler.find(name)
        if number is None and not evaluation.claimed(attempt):
            folder = self._folder(evaluation)
            number = self.scheduler.submit(name, job_words(evaluation, attempt, checkpoint, folder), folder)
            log.info("step %d: %s is evaluated by job %s (%s)", evaluation.step, evaluation.suite, number, name)
        evaluation.record(attempt, name, number, checkpoint)

    def _folder(self, evaluation: Evaluation) -> Path:
        return evaluation.folder / evaluation.suite

    def _mark_best(self) -> None:
        for folder in (self.run / EVALUATIONS).glob("step-*"):
            step = parse_step(folder.name)
            if step is not None and step not in self._figures and (value := figure_of(self.run, step)) is not None:
                self._figures[step] = value
        best = best_of(self._figures, self.wanted.mode)
        if best is None:
            return
        figure, value = f"{self.wanted.suite}/{self.wanted.figure}", self._figures[best]
        checkpoint = checkpoints_of(self.run).get(best)  # a later attempt may have saved the step again
        marked = {"step": best, "checkpoint": checkpoint, "figure": figure, "value": value}
        file = self.run / BEST_FILE
        if not file.is_file() or json.loads(file.read_text(encoding="utf-8")) != marked:
            write_json(file, marked)
            log.info("best checkpoint: step %d (%s %.4g)", best, figure, value)


def checkpoints_of(run: Path) -> dict[int, str]:
    """The committed checkpoints of the run, by step the name of the latest attempt's folder (contract 3)."""
    return {saved.step: saved.folder.name for saved in committed_steps(run / CHECKPOINTS)}


def job_words(evaluation: Evaluation, attempt: int, checkpoint: str, folder: Path) -> list[str]:
    """The words of the job that evaluates `checkpoint`; `folder` is its own run's folder."""
    return [
        "recipe=evaluate_checkpoint",
        f"run.name={quoted(evaluation.job_name(attempt))}",
        f"run.folder={quoted(str(folder))}",
        f"task.checkpoint={quoted(str(evaluation.run / CHECKPOINTS / checkpoint))}",
        f"task.suite={quoted(evaluation.suite)}",
        f"task.attempt={attempt}",
    ]


def quoted(text: str) -> str:
    """`text` as a value in Hydra's grammar of overrides, whatever is in it."""
    text = re.sub(r"(\\*)('|$)", lambda found: found[1] * 2 + ("\\'" if found[2] else ""), text)
    return f"'{text}'".replace("${", "\\${")


def wanted_of(run: Path, suites: Sequence[str] | None, best: str | None, mode: str) -> Wanted:
    """What the command line asks for; by default what was asked for before, else all evals of the run's recipe,
    and the best by drive/ade of the first. Raises `WatchError`.
    """
    before = Wanted.read(run)
    if before is not None and suites is None and best is None:
        return before
    file = run / RECIPE_FILE
    if not file.is_file():
        raise WatchError(f"{file}: not there; give --folder a run's folder, after its first attempt has begun")
    recipe: dict[str, Any] = yaml.safe_load(file.read_text(encoding="utf-8"))
    known = list(recipe.get("evals") or {})
    chosen = tuple(suites or known)
    if unknown := [suite for suite in chosen if suite not in known] or ([] if chosen else ["none"]):
        raise WatchError(f"{file}: no examination {', '.join(unknown)}; there are: {', '.join(known) or 'none'}")
    suite, _, figure = (best or f"{chosen[0]}/drive/ade").partition("/")
    if suite not in chosen or not figure:
        raise WatchError(
            f"--best {best}: give SUITE/FIGURE, such as {chosen[0]}/drive/ade; SUITE one that is evaluated"
        )
    return Wanted(chosen, suite, figure, "max" if mode == "max" else "min")


def begun(run: Path, every_s: float) -> None:
    """Wait until the first attempt of the run has left its recipe in the folder, which submitting it has made. Raises
    `WatchError` where there is no such folder.
    """
    if not run.is_dir():
        raise WatchError(f"{run}: no such folder; give --folder a run's folder")
    while not (run / RECIPE_FILE).is_file():
        time.sleep(every_s)


def finished(run: Path) -> bool:
    """Whether the run's last attempt came to the end."""
    file = run / ATTEMPTS_FILE
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    last = json.loads(lines[-1]) if lines else {}
    return last.get("event") == "end" and last.get("outcome") == "finished"


@contextmanager
def alone(run: Path, patience_s: float) -> Iterator[None]:
    """Be the run's only watcher; the kernel gives the place back when this process dies. Another may take `patience_s`
    to leave it. Raises `WatchError`.
    """
    file = run / EVALUATIONS / "watcher.lock"
    file.parent.mkdir(parents=True, exist_ok=True)
    until = time.monotonic() + patience_s
    with file.open("a") as lock:
        while not taken(lock):
            if time.monotonic() >= until:
                raise WatchError(f"{file}: another watcher sees to this run; leave it to it, or end it first")
            time.sleep(0.2)
        yield


def watch(
    run: Path, scheduler: Scheduler, wanted: Wanted, once: bool, every_s: float, until_ended: bool = False
) -> None:
    """Look every `every_s` seconds (or `once`) until the run is finished and all its evaluations are settled; or
    `until_ended`, by somebody who knows better whether the run goes on. A scheduler that does not answer is asked again
    at the next look. Raises `WatchError`.
    """
    with alone(run, LOOK_S if once else 0.0):
        watcher = Watcher(run, scheduler, wanted)
        while True:
            over = finished(run)  # asked before looking, so that no last checkpoint is missed
            try:
                settled = watcher.look()
            except OSError as error:
                settled = False
                log.warning("not all could be seen to, and will be later: %s", error)
            if once or (over and settled and not until_ended):
                return
            time.sleep(every_s)


def main(arguments: Sequence[str] | None = None) -> int:
    """Watch a run until it is over. Returns the exit code: 2 when it cannot be watched."""
    purpose = (__doc__ or "").split("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m framework.launch.eval_jobs.watcher", description=purpose)
    parser.add_argument("--folder", type=Path, required=True, help="the run's folder")
    parser.add_argument("--suites", nargs="+", help="evals of the run's recipe (default: all)")
    parser.add_argument("--best", metavar="SUITE/FIGURE", help="what the best is best by (default: drive/ade)")
    parser.add_argument("--mode", choices=("min", "max"), default="min", help="whether the lowest or highest is best")
    parser.add_argument("--once", action="store_true", help="look once, submit what is to be submitted, and end")
    parser.add_argument("--until-ended", action="store_true", help="look until ended, though the run seem finished")
    parser.add_argument("--every", type=float, default=10.0, metavar="SECONDS", help="between two looks")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s watch: %(message)s")
    try:
        if not options.once:
            begun(options.folder, options.every)
        wanted = wanted_of(options.folder, options.suites, options.best, options.mode)
        scheduler = beside(options.folder.resolve())
        watch(options.folder, scheduler, wanted, options.once, options.every, options.until_ended)
    except (WatchError, SpecError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
