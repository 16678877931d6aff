"""Companion jobs of a run, such as its evaluations: they have one worker and go to the scheduler that has the run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from framework.launch.schedulers.base import Scheduler
from framework.launch.schedulers.registry import scheduler_of
from framework.launch.spec import RunSpec, load, local_spec
from framework.launch.submissions import record_submission
from framework.run.layout import JOB_FILE, JOB_LOG_FILE


@dataclass(frozen=True)
class CompanionJobs:
    """Submits and finds the companion jobs of one run."""

    scheduler: Scheduler
    """The scheduler that takes them."""
    spec: RunSpec
    """The run's own specification, which they inherit but for their size. They share nodes with other jobs."""

    def submit(self, name: str, overrides: Sequence[str], folder: Path, after: Sequence[str] = ()) -> str:
        """Submit `python -m framework *overrides` as the job called `name`, which starts once the jobs `after` have
        succeeded, and return the job. Its specification and its log lie in `folder`. Raises `OSError` where the
        scheduler refuses it.
        """
        folder.mkdir(parents=True, exist_ok=True)
        gpus = min(1, self.spec.gpus)
        spec = replace(self.spec, name=name, overrides=tuple(overrides), folder=str(folder))
        spec = replace(spec, nodes=1, devices=1, gpus=gpus, exclusive=False)
        spec.save()
        text, file = self.scheduler.render([spec], name, str(folder / JOB_LOG_FILE)), folder / self.scheduler.file
        file.write_text(text, encoding="utf-8")
        job = self.scheduler.submit(text, after)
        record_submission(folder, self.scheduler.name, job, file)
        return job

    def find(self, name: str) -> str | None:
        """Return the pending or running job of that name, or None. Raises `OSError` when the scheduler does not
        answer.
        """
        return self.scheduler.find(name)


def companion_jobs(run: Path) -> CompanionJobs:
    """Return the companion jobs of the run in folder `run`. Those of a run that was not submitted stay on this machine.
    Raises `SpecError` for a specification that cannot be read.
    """
    spec = load(run) if (run / JOB_FILE).is_file() else local_spec(run)
    return CompanionJobs(scheduler_of(spec), spec)
