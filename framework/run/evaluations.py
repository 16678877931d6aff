"""The evaluations of a run's checkpoints, as files in the run's folder: what is wanted, begun and found.

RUN/evaluations/
    wanted.json                   the suites and what is best; from then on retention waits for them
    step-00000100/
        held_out.submitted-1.json the first try, as the watcher handed it to the scheduler
        held_out.claim-1          taken by the job that evaluates: another of the same try ends at once
        held_out.json             what was found, written once and whole
        held_out.failed           no try came through, and none is left
RUN/best.json                     the best checkpoint

Watcher, jobs and retention meet here and nowhere else, each in a process of its own that may be killed at any instant.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from framework.run.files import create_text, read_json, write_json
from framework.run.layout import EVALUATIONS, step_name

TRIES = 3
"""Jobs that may fail before an evaluation is given up."""


@dataclass(frozen=True)
class Wanted:
    """What each checkpoint of a run is put to, and which is best: the one whose `figure` ("drive/ade") of `suite` is
    lowest (`mode` "min") or highest ("max").
    """

    suites: tuple[str, ...]
    suite: str
    figure: str
    mode: Literal["min", "max"]

    def write(self, run: Path) -> None:
        """Ask for it in the run's folder; written again it replaces what was asked before."""
        write_json(run / EVALUATIONS / "wanted.json", asdict(self))

    @classmethod
    def read(cls, run: Path) -> Wanted | None:
        """What is wanted of the run in folder `run`; None when nobody asked for evaluations."""
        found = read_json(run / EVALUATIONS / "wanted.json")
        return None if found is None else cls(**{**found, "suites": tuple(found["suites"])})


@dataclass(frozen=True)
class Evaluation:
    """The evaluation of optimizer step `step` of the run in folder `run` by `suite`."""

    run: Path
    step: int
    suite: str

    @property
    def folder(self) -> Path:
        """Where all evaluations of the step are."""
        return self.run / EVALUATIONS / step_name(self.step)

    def job_name(self, attempt: int) -> str:
        """What the job of try `attempt` is called, everywhere the same: lower-case letters, digits and hyphens, at most
        63 (DNS-1035), and no other evaluation's name.
        """
        digest = hashlib.sha256(f"{self.run.resolve()}\n{self.suite}".encode()).hexdigest()[:10]
        words = re.sub(r"[^a-z0-9]+", "-", f"{self.run.name[:16]}-{self.suite[:12]}".lower()).strip("-")
        return f"evaluate-{words}-{digest}-{self.step}-{attempt}"

    def submissions(self) -> list[str]:
        """The names of the jobs that were submitted, first to last."""
        tries = range(1, TRIES + 1)
        return [found["job"] for attempt in tries if (found := read_json(self._submission(attempt))) is not None]

    def record(self, attempt: int, job: str, number: str | None, checkpoint: str) -> None:
        """Note that try `attempt` was submitted as `job`, which the scheduler calls `number` (None: it forgot)."""
        write_json(self._submission(attempt), {"job": job, "number": number, "checkpoint": checkpoint})

    def claim(self, attempt: int, owner: str) -> bool:
        """Whether the job `owner` is the one that evaluates in try `attempt`; asked again, the answer is the same."""
        return create_text(self._claim(attempt), owner) or self._claim(attempt).read_text(encoding="utf-8") == owner

    def claimed(self, attempt: int) -> bool:
        """Whether a job of try `attempt` has begun."""
        return self._claim(attempt).is_file()

    def results(self) -> dict[str, Any] | None:
        """What was found; None as long as nothing was."""
        results: dict[str, Any] | None = read_json(self.folder / f"{self.suite}.json")
        return results

    def finish(self, results: Mapping[str, Any]) -> bool:
        """Keep `results`, unless there are some: then False."""
        return create_text(self.folder / f"{self.suite}.json", json.dumps(results, indent=1))

    def give_up(self, why: str) -> None:
        """No further try."""
        create_text(self.folder / f"{self.suite}.failed", why)

    @property
    def settled(self) -> bool:
        """Whether there is nothing more to wait for."""
        return self.results() is not None or (self.folder / f"{self.suite}.failed").is_file()

    def _submission(self, attempt: int) -> Path:
        return self.folder / f"{self.suite}.submitted-{attempt}.json"

    def _claim(self, attempt: int) -> Path:
        return self.folder / f"{self.suite}.claim-{attempt}"


def pending(run: Path, step: int) -> bool:
    """Whether the checkpoint of `step` is still to be evaluated."""
    wanted = Wanted.read(run)
    return wanted is not None and not all(Evaluation(run, step, suite).settled for suite in wanted.suites)


def figure_of(run: Path, step: int) -> float | None:
    """What the checkpoint of `step` is judged by, None as long as it is not known."""
    wanted = Wanted.read(run)
    results = Evaluation(run, step, wanted.suite).results() if wanted is not None else None
    if wanted is None or results is None or wanted.figure not in results["figures"]:
        return None
    return float(results["figures"][wanted.figure])


def best_of(figures: Mapping[int, float], mode: Literal["min", "max"]) -> int | None:
    """The step with the best of `figures`; of equals the latest. None where there are none."""
    sign = -1 if mode == "min" else 1
    return max(figures, key=lambda step: (sign * figures[step], step), default=None)
