"""The exit codes of a job's processes: what a supervisor returns, and what the scheduler does about it."""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """How a process ended. Python, `srun` and shells never choose 75 or 78 on their own; they end with 1 or 2 where a
    file system is away for a while, so a job that ends with any other code is requeued.
    """

    DONE = 0
    """The run is complete."""
    RECIPE_ERROR = 2
    """The recipe cannot run. A worker's code; its supervisor answers with `STOP`."""
    REQUEUE = 75
    """Requeue the job: another node may do better, or the job's time is up (EX_TEMPFAIL in sysexits.h)."""
    STOP = 78
    """Do not requeue: a person must look at the run first (EX_CONFIG in sysexits.h)."""
    TERMINATED = 143
    """SIGTERM ended the process (128 + 15). Whoever sent the signal knows what happens next."""
