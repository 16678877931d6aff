"""Slurm as a scheduler of jobs, by its commands: sbatch, squeue, scancel, sinfo."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from framework.launch.schedulers import sbatch
from framework.launch.spec import RunSpec, SpecError

CONF = "SLURM_CONF"
"""Names the file by which Slurm's commands find their cluster."""
TIMEOUT_S = 60.0
"""A busy controller answers late; one that is silent for so long (s) does not answer at all."""


class SlurmError(OSError):
    """A command of Slurm failed; the text is what it printed."""


@dataclass(frozen=True, kw_only=True)
class SlurmScheduler:
    """Jobs of Slurm; see `base.Scheduler`. A job is its number, an element of an array `<number>_<element>`."""

    partition: str
    """The partition that takes the jobs."""
    account: str | None = None
    """The account that pays for them; None: the user's default."""
    qos: str | None = None
    """Their quality of service; None: the default."""
    reservation: str | None = None
    """The reservation whose nodes they use."""
    constraint: str | None = None
    """The features that their nodes must have."""
    at_once: int = 4
    """Runs of a sweep that run concurrently."""

    name: ClassVar[str] = "slurm"
    file: ClassVar[str] = "job.sbatch"

    def __post_init__(self) -> None:
        """Raises `SpecError` for a value that sbatch would read as something else."""
        sbatch.check_options(self.placement)
        if type(self.at_once) is not int or self.at_once < 1:
            raise SpecError(f"launch.at_once: {self.at_once!r} must be an integer of at least 1")

    @property
    def placement(self) -> Mapping[str, str]:
        """See `Scheduler`."""
        names = ("partition", "account", "qos", "reservation", "constraint")
        return {name: value for name in names if (value := getattr(self, name)) is not None}

    def render(self, specs: Sequence[RunSpec], name: str, output: str) -> str:
        """Render one sbatch script; a sweep becomes a job array."""
        return sbatch.render(specs, name, output, self.placement, self.at_once)

    def submit(self, text: str, after: Sequence[str] = ()) -> str:
        """See `Scheduler`. Slurm cancels the job when one of the jobs `after` fails."""
        wait = [f"--dependency=afterok:{':'.join(after)}", "--kill-on-invalid-dep=yes"] if after else []
        return _run("sbatch", "--parsable", *wait, stdin=text).strip().partition(";")[0]

    def resubmit(self, text: str, job: str) -> str:
        """See `Scheduler`. Of a job array only the element that `job` was is submitted."""
        _, _, element = job.partition("_")
        answer = _run("sbatch", "--parsable", *([f"--array={element}"] if element else []), stdin=text)
        return answer.strip().partition(";")[0] + (f"_{element}" if element else "")

    def find(self, name: str) -> str | None:
        """See `Scheduler`. Of several jobs of this user with that name the newest is returned."""
        lines = _run("squeue", "--me", "--noheader", "--format=%i %j").splitlines()
        jobs = [line.split(" ", 1)[0] for line in lines if line.partition(" ")[2] == name]
        return max(jobs, key=_number, default=None)

    def state(self, job: str) -> str | None:
        """See `Scheduler`: PENDING with the reason, RUNNING, ..."""
        answer = _call("squeue", "--noheader", "--states=all", f"--jobs={job}", "--format=%T %r")
        words = answer.stdout.split("\n", 1)[0].split(" ", 1) if answer.returncode == 0 else []
        if not words or not words[0]:
            return None
        return f"{words[0]} ({words[1]})" if words[0] == "PENDING" else words[0]

    def is_active(self, job: str) -> bool:
        """See `Scheduler`. A job that is completing is active."""
        return job in _run("squeue", "--me", "--noheader", "--array", "--format=%i").split()

    def stop(self, job: str) -> None:
        """See `Scheduler`. SIGKILL follows SIGTERM after Slurm's `KillWait`."""
        _run("scancel", job)

    def log(self, job: str) -> str:
        """See `Scheduler`. A job of Slurm logs into its run's folder, so without that file there is nothing yet."""
        return f"job {job} has written nothing yet: {self.state(job) or 'Slurm no longer knows it'}"


def validate(script: str) -> str:
    """Return Slurm's estimate of when and where `script` would run. Raises `SlurmError` if Slurm would refuse it."""
    answer = _call("sbatch", "--test-only", stdin=script)
    if answer.returncode:
        raise SlurmError(answer.stderr.strip())
    return answer.stderr.strip()


def nodes_held() -> int:
    """Return how many nodes this user's pending and running jobs hold. Raises `SlurmError`."""
    return sum(map(int, _run("squeue", "--me", "--noheader", "--array", "--format=%D").split()))


def active_elements(array: str) -> list[str]:
    """Return the jobs of an array that are pending, running or completing. Raises `SlurmError`."""
    jobs = _run("squeue", "--me", "--noheader", "--array", "--format=%i").split()
    return [job for job in jobs if job.partition("_")[0] == array]


def partitions() -> dict[str, str]:
    """Return the state of every partition by name. Raises `SlurmError`."""
    lines = _run("sinfo", "--noheader", "--format=%R %a").splitlines()
    return dict(line.split(" ", 1) for line in lines)


def _number(job: str) -> int:
    return int(job.partition("_")[0])


def _run(*command: str, stdin: str = "") -> str:
    answer = _call(*command, stdin=stdin)
    if answer.returncode:
        raise SlurmError(f"{command[0]}: {answer.stderr.strip() or answer.stdout.strip()}")
    return answer.stdout


def _call(*command: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    # Inside a job, its own SLURM_ variables would be taken for options of the command.
    variables = {name: value for name, value in os.environ.items() if name == CONF or not name.startswith("SLURM_")}
    try:
        return subprocess.run(
            command, input=stdin, env=variables, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )
    except FileNotFoundError as error:
        raise SlurmError(f"{command[0]}: not installed here; launch from a login node of the cluster") from error
    except subprocess.TimeoutExpired as error:
        raise SlurmError(f"{command[0]}: Slurm's controller did not answer for {TIMEOUT_S:.0f} s; try again") from error
