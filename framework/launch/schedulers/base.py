"""The protocol of a scheduler: whatever takes jobs, be it Slurm, Kubernetes or this machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Protocol

from framework.launch.spec import RunSpec


class Scheduler(Protocol):
    """Renders specifications, submits what was rendered, and manages the jobs that came of it.

    A job is identified by the string that `submit` returns.
    """

    name: ClassVar[str]
    """The scheduler's key in `schedulers.registry.SCHEDULERS`, stored as `RunSpec.scheduler`."""
    file: ClassVar[str]
    """The name of the file that keeps the rendered text in the run's folder."""

    @property
    def placement(self) -> Mapping[str, str]:
        """The arguments from which `scheduler_of` makes a scheduler for the run's companion jobs."""
        ...

    def render(self, specs: Sequence[RunSpec], name: str, output: str) -> str:
        """Render `specs` as the text to submit; several are a sweep called `name`, which logs to `output` until a run
        of it has started. Raises `SpecError` with everything that the scheduler would refuse.
        """
        ...

    def submit(self, text: str, after: Sequence[str] = ()) -> str:
        """Submit rendered `text`, to start once the jobs `after` have succeeded, and return the job. Raises `OSError`
        where the scheduler refuses it.
        """
        ...

    def resubmit(self, text: str, job: str) -> str:
        """Submit `job` again, which came of `text` or of a part of it, and return the new job. Raises `OSError`."""
        ...

    def find(self, name: str) -> str | None:
        """Return the pending or running job of that name, or None. Raises `OSError`, and never returns None, when the
        scheduler does not answer.
        """
        ...

    def state(self, job: str) -> str | None:
        """Return the state of a job in the scheduler's own words; None once it has forgotten the job."""
        ...

    def is_active(self, job: str) -> bool:
        """Return whether a job is pending or running. Raises `OSError` when the scheduler does not answer."""
        ...

    def stop(self, job: str) -> None:
        """End a job by SIGTERM, on which it saves first. Raises `OSError`."""
        ...

    def log(self, job: str) -> str:
        """Return the last lines of a job that has no log in its run's folder, or why there are none."""
        ...
