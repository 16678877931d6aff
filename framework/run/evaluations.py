"""The evaluations of a run's checkpoints, as files in the run's folder: requested, claimed and finished.

RUN/evaluations/
    wanted.json                   the suites, and how the best checkpoint is chosen; retention waits for them
    step-00000100.0123456789ab/   of the checkpoint of step 100 whose hash starts so: other weights, other results
        held_out.submitted-1.json the first try, as the watcher submitted it to the scheduler
        held_out.claim-1          held by the job that evaluates; any other job of the same try ends at once
        held_out.json             the results, written once and whole
        held_out.failed           all tries have failed
RUN/best.json                     the best checkpoint

Watcher, jobs and retention communicate through these files alone. Each is a process of its own that may be killed at
any instant.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from framework.run.files import create_text, read_json, write_json
from framework.run.layout import EVALUATIONS, WANTED_FILE, file_stem, step_name

TRIES = 3
"""The number of jobs that may fail before an evaluation is given up."""


@dataclass(frozen=True)
class Wanted:
    """The evaluations that every checkpoint of a run is to have, and how the best checkpoint is chosen."""

    suites: tuple[str, ...]
    """The names of the evaluators, from the run's own recipe."""
    suite: str
    """The evaluator whose metric decides."""
    figure: str
    """The deciding metric, such as `drive/ade`."""
    mode: Literal["min", "max"]
    """Whether the lowest or the highest value is best."""

    def write(self, run: Path) -> None:
        """Store the request in the folder of the run, in place of an earlier one."""
        write_json(run / EVALUATIONS / WANTED_FILE, asdict(self))

    @classmethod
    def read(cls, run: Path) -> Wanted | None:
        """The request in the folder of the run; None where no evaluations are wanted."""
        fields = read_json(run / EVALUATIONS / WANTED_FILE)
        return None if fields is None else cls(**{**fields, "suites": tuple(fields["suites"])})


@dataclass(frozen=True)
class Evaluation:
    """One evaluation: of a run's checkpoint, by one suite."""

    run: Path
    """The run's folder."""
    step: int
    """The checkpoint's optimizer step."""
    weights: str
    """The checkpoint's hash, that of its COMMIT: a step that a later attempt saves again is evaluated again."""
    suite: str
    """The name of the eval in the run's recipe."""

    @property
    def folder(self) -> Path:
        """The folder of all evaluations of the checkpoint."""
        return self.run / EVALUATIONS / f"{step_name(self.step)}.{self.weights[:12]}"

    def job_name(self, attempt: int) -> str:
        """The name of the job of try `attempt`, the same for every scheduler and unique to this evaluation: lower-case
        letters, digits and hyphens, at most 63 characters (DNS-1035).
        """
        digest = hashlib.sha256(f"{self.run.resolve()}\n{self.weights}\n{self.suite}".encode()).hexdigest()[:10]
        words = re.sub(r"[^a-z0-9]+", "-", f"{self.run.name[:16]}-{self.suite[:12]}".lower()).strip("-")
        return f"evaluate-{words}-{digest}-{self.step}-{attempt}"

    def submissions(self) -> list[str]:
        """The names of the submitted jobs, first to last."""
        submissions = [read_json(self._submission(attempt)) for attempt in range(1, TRIES + 1)]
        return [submission["job"] for submission in submissions if submission is not None]

    def record(self, attempt: int, job: str, number: str | None, checkpoint: str) -> None:
        """Record that try `attempt` of evaluating `checkpoint` was submitted as `job`. `number` is the scheduler's id
        for it, None where the scheduler no longer knows it.
        """
        write_json(self._submission(attempt), {"job": job, "number": number, "checkpoint": checkpoint})

    def claim(self, attempt: int, owner: str) -> bool:
        """Claim try `attempt` for the job `owner`. Returns whether that job holds the claim, now or from before."""
        return create_text(self._claim(attempt), owner) or self._claim(attempt).read_text(encoding="utf-8") == owner

    def claimed(self, attempt: int) -> bool:
        """Whether a job of try `attempt` has started."""
        return self._claim(attempt).is_file()

    def results(self) -> dict[str, Any] | None:
        """The results of these weights; None until they exist."""
        results: dict[str, Any] | None = read_json(self._file(".json"))
        return results if results is not None and results["weights"] == self.weights else None

    def finish(self, results: Mapping[str, Any]) -> bool:
        """Store the results with the weights' hash. Returns False, and stores nothing, where there are some already."""
        text = json.dumps({"step": self.step, "weights": self.weights, "suite": self.suite, **results}, indent=1)
        return create_text(self._file(".json"), text)

    def give_up(self, why: str) -> None:
        """Record that no further try is made, and `why`."""
        create_text(self._file(".failed"), why)

    @property
    def settled(self) -> bool:
        """Whether the evaluation has results or was given up."""
        return self.results() is not None or (self._file(".failed")).is_file()

    def _file(self, ending: str) -> Path:
        return self.folder / f"{file_stem(self.suite)}{ending}"

    def _submission(self, attempt: int) -> Path:
        return self._file(f".submitted-{attempt}.json")

    def _claim(self, attempt: int) -> Path:
        return self._file(f".claim-{attempt}")


def pending(run: Path, step: int, weights: str, wanted: Wanted) -> bool:
    """Whether the checkpoint of `step` with the hash `weights` waits for a wanted evaluation."""
    return not all(Evaluation(run, step, weights, suite).settled for suite in wanted.suites)


def figure_of(run: Path, step: int, weights: str, wanted: Wanted) -> float | None:
    """The deciding figure of the checkpoint of `step` with the hash `weights`; None until it is known, and where it is
    no finite number: no such checkpoint is the best.
    """
    results = Evaluation(run, step, weights, wanted.suite).results()
    figure = None if results is None else results["figures"].get(wanted.figure)
    return float(figure) if isinstance(figure, int | float) and math.isfinite(figure) else None


def best_of(figures: Mapping[int, float], mode: Literal["min", "max"]) -> int | None:
    """The step with the best of `figures`, the latest of equals; None where there are none."""
    sign = -1 if mode == "min" else 1
    return max(figures, key=lambda step: (sign * figures[step], step), default=None)
