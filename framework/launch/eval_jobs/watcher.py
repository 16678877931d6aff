"""The watcher of a run: has every committed checkpoint evaluated exactly once per evaluator, whichever process dies.

python -m framework.launch.eval_jobs.watcher --folder RUN [--evals held_out zero_shot] [--best held_out/drive/ade]
    [--once]

The watcher may be killed at any time and restarted on any machine that sees the run's folder. A job's name is derived
from run, step, evaluator and try. Before submitting it, the watcher asks the scheduler for a job of that name, and
looks in the run's folder for what such a job leaves: its claim, its results. One case slips through, a job that ends
between the two questions; its successor stops by itself, because a job takes the claim before it does anything.
"""

from __future__ import annotations

import argparse
import logging
import re
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from framework.launch.eval_jobs.companion import CompanionJobs, companion_jobs
from framework.launch.spec import SpecError
from framework.recipe.credentials import mask_output
from framework.recipe.renames import renames
from framework.run.evaluations import (
    TRIES,
    Evaluation,
    Wanted,
    best_of,
    figure_of,
)
from framework.run.files import read_records, to_json, write_json
from framework.run.layout import (
    ATTEMPTS_FILE,
    BEST_FILE,
    CHECKPOINTS,
    EVALUATIONS,
    RECIPE_FILE,
    SavedStep,
    file_stem,
)
from framework.run.lock import try_lock
from framework.run.logs import set_up_logging
from framework.run.progress import history

log = logging.getLogger(__name__)

LOOK_TIMEOUT_S = 10.0
"""How long a single look waits (s) for another watcher to leave."""


class WatchError(RuntimeError):
    """A run that cannot be watched. The message names the file and the remedy."""


class Watcher:
    """Has every checkpoint of a run evaluated.

    Args:
        run: The run's folder.
        jobs: The run's companion jobs, which evaluate.
        wanted: The suites, and the figure that marks the best checkpoint.
    """

    def __init__(self, run: Path, jobs: CompanionJobs, wanted: Wanted) -> None:
        self.run = run.resolve()
        self.jobs = jobs
        self.wanted = wanted
        wanted.write(self.run)

    def look(self) -> bool:
        """Look once at every committed checkpoint and mark the best. Returns whether all evaluations are settled."""
        settled, checkpoints = True, checkpoints_of(self.run)
        for step, checkpoint in checkpoints.items():
            for suite in self.wanted.suites:
                evaluation = Evaluation(self.run, step, checkpoint.hash, suite)
                settled &= self._advance(evaluation, checkpoint.folder.name)
        self._mark_best(checkpoints)
        return settled

    def _advance(self, evaluation: Evaluation, checkpoint: str) -> bool:
        """Submit the evaluation if none of its jobs is active. Returns whether it is settled."""
        if evaluation.settled:
            return True
        names = evaluation.submissions()
        if names and (self.jobs.find(names[-1]) is not None or evaluation.settled):
            return False
        attempt = len(names) + 1
        if attempt > TRIES:
            evaluation.give_up(f"{TRIES} jobs ended without results: see their logs in {self._folder(evaluation)}")
            log.error("giving up %s of step %d: %d jobs failed", evaluation.suite, evaluation.step, TRIES)
            return True
        self._submit(evaluation, attempt, checkpoint)
        return False

    def _submit(self, evaluation: Evaluation, attempt: int, checkpoint: str) -> None:
        """Submit try `attempt`, unless an earlier watcher did so and was killed before it recorded that."""
        name = evaluation.job_name(attempt)
        number = self.jobs.find(name)
        if number is None and not evaluation.claimed(attempt):
            folder = self._folder(evaluation)
            number = self.jobs.submit(name, evaluation_overrides(evaluation, attempt, checkpoint, folder), folder)
            log.info("step %d: job %s (%s) evaluates %s", evaluation.step, number, name, evaluation.suite)
        evaluation.record(attempt, name, number, checkpoint)

    def _folder(self, evaluation: Evaluation) -> Path:
        return evaluation.folder / file_stem(evaluation.suite)

    def _mark_best(self, checkpoints: Mapping[int, SavedStep]) -> None:
        """Write which of the checkpoints is best; delete the mark where none has a figure."""
        figures: dict[int, float] = {}
        for step, checkpoint in checkpoints.items():
            value = figure_of(self.run, step, checkpoint.hash, self.wanted)
            if value is not None:
                figures[step] = value
        best, file = best_of(figures, self.wanted.mode), self.run / BEST_FILE
        if best is None:
            file.unlink(missing_ok=True)
            return
        figure, value = f"{self.wanted.suite}/{self.wanted.figure}", figures[best]
        name, weights = checkpoints[best].folder.name, checkpoints[best].hash
        mark = {"step": best, "checkpoint": name, "weights": weights, "figure": figure, "value": value}
        if not file.is_file() or file.read_text(encoding="utf-8", errors="replace") != to_json(mark):
            write_json(file, mark)
            log.info("best checkpoint: step %d (%s %.4g)", best, figure, value)


def checkpoints_of(run: Path) -> dict[int, SavedStep]:
    """Return the committed checkpoints of the run's history: by step that of the latest attempt (contract 3)."""
    return {saved.step: saved for saved in history(run)}


def evaluation_overrides(evaluation: Evaluation, attempt: int, checkpoint: str, folder: Path) -> list[str]:
    """Return the overrides of the job that evaluates `checkpoint`; `folder` is the job's own run folder."""
    return [
        "recipe=evaluate",
        f"run.name={quoted(evaluation.job_name(attempt))}",
        f"run.folder={quoted(str(folder))}",
        f"task.checkpoint={quoted(str(evaluation.run / CHECKPOINTS / checkpoint))}",
        f"task.evals=[{quoted(evaluation.suite)}]",
        f"task.attempt={attempt}",
    ]


def quoted(text: str) -> str:
    """Return `text`, whatever it contains, as a value in Hydra's grammar of overrides."""
    text = re.sub(r"(\\*)('|$)", lambda match: match[1] * 2 + ("\\'" if match[2] else ""), text)
    return f"'{text}'".replace("${", "\\${")


def wanted_of(run: Path, suites: Sequence[str] | None, best: str | None, mode: str) -> Wanted:
    """Return what the command line asks for. The default is what was asked for before; failing that, all evals of the
    run's recipe, and the best by drive/ade of the first. Raises `WatchError`.
    """
    before = Wanted.read(run)
    if before is not None and suites is None and best is None:
        return before
    file = run / RECIPE_FILE
    if not file.is_file():
        raise WatchError(f"{file}: not there; give --folder a run's folder once its first attempt has started")
    recipe: dict[str, Any] = renames().tree(yaml.safe_load(file.read_text(encoding="utf-8")))
    known = list(recipe.get("evals") or {})
    chosen = tuple(suites or known)
    if unknown := [suite for suite in chosen if suite not in known] or ([] if chosen else ["none"]):
        raise WatchError(f"{file}: no evaluation {', '.join(unknown)}; there are: {', '.join(known) or 'none'}")
    suite, _, figure = (best or f"{chosen[0]}/drive/ade").partition("/")
    if suite not in chosen or not figure:
        raise WatchError(f"--best {best}: give EVAL/METRIC, such as {chosen[0]}/drive/ade, with EVAL among --evals")
    return Wanted(chosen, suite, figure, "max" if mode == "max" else "min")


def wait_for_recipe(run: Path, every_s: float) -> None:
    """Wait until the run's first attempt has written its recipe into the folder, looking every `every_s` seconds.
    Raises `WatchError` where there is no such folder.
    """
    if not run.is_dir():
        raise WatchError(f"{run}: no such folder; give --folder a run's folder")
    while not (run / RECIPE_FILE).is_file():
        time.sleep(every_s)


def finished(run: Path) -> bool:
    """Return whether the run's last attempt is complete."""
    last = (read_records(run / ATTEMPTS_FILE) or [{}])[-1]
    return last.get("event") == "end" and last.get("outcome") == "finished"


@contextmanager
def watcher_lock(run: Path, timeout_s: float) -> Iterator[None]:
    """Hold the lock of the run's only watcher, which the kernel releases when this process dies. Raises `WatchError`
    when another watcher still holds it after `timeout_s` seconds.
    """
    file = run / EVALUATIONS / "watcher.lock"
    file.parent.mkdir(parents=True, exist_ok=True)
    until = time.monotonic() + timeout_s
    with file.open("a") as lock:
        while not try_lock(lock):
            if time.monotonic() >= until:
                raise WatchError(f"{file}: another watcher looks after this run; leave the run to it, or end it first")
            time.sleep(0.2)
        yield


def watch(
    run: Path, jobs: CompanionJobs, wanted: Wanted, once: bool, every_s: float, until_ended: bool = False
) -> None:
    """Look every `every_s` seconds, or `once`, until the run is finished and all its evaluations are settled. With
    `until_ended` only a signal ends the watch: the sender knows whether the run continues. A scheduler that does not
    answer is asked again at the next look. Raises `WatchError`.
    """
    with watcher_lock(run, LOOK_TIMEOUT_S if once else 0.0):
        watcher = Watcher(run, jobs, wanted)
        while True:
            complete = finished(run)  # asked before looking, so that the last checkpoint is not missed
            try:
                settled = watcher.look()
            except OSError as error:
                settled = False
                log.warning("some evaluations wait for the next look: %s", error)
            if once or (complete and settled and not until_ended):
                return
            time.sleep(every_s)


def main(arguments: Sequence[str] | None = None) -> int:
    """Watch a run until it is finished. Returns the exit code: 2 when it cannot be watched."""
    if arguments is None:  # a process of its own
        mask_output()
    purpose = (__doc__ or "").split("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m framework.launch.eval_jobs.watcher", description=purpose)
    parser.add_argument("--folder", type=Path, required=True, help="the run's folder")
    parser.add_argument("--evals", nargs="+", metavar="EVAL", help="evaluators of the run's recipe (default: all)")
    parser.add_argument("--best", metavar="EVAL/METRIC", help="metric of the best checkpoint (default: drive/ade)")
    parser.add_argument(
        "--mode", choices=("min", "max"), default="min", help="whether the lowest or the highest value is best"
    )
    parser.add_argument("--once", action="store_true", help="look once, submit what is due, and exit")
    parser.add_argument("--until-ended", action="store_true", help="look until a signal, even once the run is finished")
    parser.add_argument("--every", type=float, default=10.0, metavar="SECONDS", help="time between two looks")
    options = parser.parse_args(arguments)
    set_up_logging("watch")
    try:
        if not options.once:
            wait_for_recipe(options.folder, options.every)
        wanted = wanted_of(options.folder, options.evals, options.best, options.mode)
        jobs = companion_jobs(options.folder.resolve())
        watch(options.folder, jobs, wanted, options.once, options.every, options.until_ended)
    except (WatchError, SpecError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
