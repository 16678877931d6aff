"""Slurm's commands: what submits a script, finds, watches and ends its job."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence

CONF = "SLURM_CONF"
"""Names the file by which Slurm's commands find their cluster."""
WAIT_S = 60.0
"""A controller that is busy answers late; one that does not answer for so long does not answer at all."""


class SlurmError(OSError):
    """What one of Slurm's commands said when it failed."""


def submit(script: str, after: Sequence[str] = ()) -> str:
    """The number of the job that `script` has become; it starts when the jobs `after` have ended well, and is
    cancelled when one of them has not. Raises `SlurmError` where Slurm refuses it.
    """
    wait = [f"--dependency=afterok:{':'.join(after)}", "--kill-on-invalid-dep=yes"] if after else []
    return _run("sbatch", "--parsable", *wait, given=script).strip().partition(";")[0]


def again(script: str, job: str) -> str:
    """Submit `script` once more; of a job array only the element that `job` was. Raises `SlurmError`."""
    _, _, element = job.partition("_")
    said = _run("sbatch", "--parsable", *([f"--array={element}"] if element else []), given=script)
    return said.strip().partition(";")[0] + (f"_{element}" if element else "")


def test(script: str) -> str:
    """What Slurm says of when and where `script` would run. Raises `SlurmError` where it would refuse it."""
    done = _call("sbatch", "--test-only", given=script)
    if done.returncode:
        raise SlurmError(done.stderr.strip())
    return done.stderr.strip()


def find(name: str) -> str | None:
    """The newest job called `name` of this user that waits or runs; None when there is none. Raises `SlurmError`."""
    lines = _run("squeue", "--me", "--noheader", "--format=%i %j").splitlines()
    found = [line.split(" ", 1)[0] for line in lines if line.partition(" ")[2] == name]
    return max(found, key=_number, default=None)


def state(job: str) -> str | None:
    """What a job is at (PENDING, RUNNING, ...) and, while it waits, why; None when Slurm has forgotten it."""
    done = _call("squeue", "--noheader", "--states=all", f"--jobs={job}", "--format=%T %r")
    words = done.stdout.split("\n", 1)[0].split(" ", 1) if done.returncode == 0 else []
    if not words or not words[0]:
        return None
    return f"{words[0]} ({words[1]})" if words[0] == "PENDING" else words[0]


def lives(job: str) -> bool:
    """Whether a job waits, runs or is just ending. Raises `SlurmError` when Slurm cannot tell."""
    return job in _run("squeue", "--me", "--noheader", "--array", "--format=%i").split()


def log(job: str) -> str:
    """Why there is nothing to read."""
    return f"job {job} has written nothing yet: {state(job) or 'Slurm does not know it any more'}"


def nodes_held() -> int:
    """Nodes of all jobs of this user that wait or run. Raises `SlurmError`."""
    return sum(map(int, _run("squeue", "--me", "--noheader", "--array", "--format=%D").split()))


def partitions() -> dict[str, str]:
    """The state of every partition of the cluster by name. Raises `SlurmError`."""
    lines = _run("sinfo", "--noheader", "--format=%R %a").splitlines()
    return dict(line.split(" ", 1) for line in lines)


def stop(job: str) -> None:
    """End a job: SIGTERM to all its processes, which save, and SIGKILL after Slurm's `KillWait`. Raises
    `SlurmError`.
    """
    _run("scancel", job)


def _number(job: str) -> int:
    return int(job.partition("_")[0])


def _run(*command: str, given: str = "") -> str:
    done = _call(*command, given=given)
    if done.returncode:
        raise SlurmError(f"{command[0]}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def _call(*command: str, given: str = "") -> subprocess.CompletedProcess[str]:
    # Within a job, its own variables would pass for those of the one that is asked for.
    variables = {name: value for name, value in os.environ.items() if name == CONF or not name.startswith("SLURM_")}
    try:
        return subprocess.run(
            command, input=given, env=variables, capture_output=True, text=True, timeout=WAIT_S, check=False
        )
    except FileNotFoundError as error:
        raise SlurmError(f"{command[0]}: not installed here; launch from a login node of the cluster") from error
    except subprocess.TimeoutExpired as error:
        raise SlurmError(f"{command[0]}: Slurm's controller did not answer for {WAIT_S:.0f} s; try again") from error
