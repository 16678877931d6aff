"""A process inside an allocation of Slurm that srun has not started: it runs alone, whatever the allocation holds."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping

TASK_VARIABLES = (
    "SLURM_NTASKS",
    "SLURM_NPROCS",
    "SLURM_NTASKS_PER_NODE",
    "SLURM_NNODES",
    "SLURM_PROCID",
    "SLURM_LOCALID",
    "SLURM_NODEID",
)
"""The variables by which this project and Lightning number the tasks of a step. A batch script and `salloc` set some
of them for the allocation, in which the other tasks were never started.
"""
BATCH_STEP, SHELL_STEP = "4294967291", "4294967290"
"""The numbers that Slurm gives a batch script and the shell of salloc, which are no steps of srun's."""


def waits_for_nobody(environment: Mapping[str, str]) -> bool:
    """Whether this process is alone although Slurm's variables tell of several tasks.

    srun numbers the step whose tasks it starts. A shell of `srun --pty` is in a step, too, and whatever is typed there
    runs once.
    """
    if "WORLD_SIZE" in environment or _tasks(environment) == 1:
        return False
    return environment.get("SLURM_STEP_ID", BATCH_STEP) in (BATCH_STEP, SHELL_STEP) or "SLURM_PTY_PORT" in environment


def _tasks(environment: Mapping[str, str]) -> int:
    """How many tasks the allocation holds at least; `--nodes` and `--ntasks-per-node` alone leave their number out."""
    if tasks := environment.get("SLURM_NTASKS"):
        return int(tasks)
    return max(int(environment.get(name) or 1) for name in ("SLURM_NPROCS", "SLURM_NTASKS_PER_NODE", "SLURM_NNODES"))


def leave_allocation() -> None:
    """Make a lone process inside an allocation of several tasks one of one, and say so: else it would wait for the
    others for ever.
    """
    if not waits_for_nobody(os.environ):
        return
    tasks = _tasks(os.environ)
    print(
        f"The allocation holds {tasks} tasks (SLURM_NTASKS), but srun did not start this process: it runs alone. "
        f"To run all {tasks}, start it by srun.",
        file=sys.stderr,
    )
    for name in TASK_VARIABLES:
        os.environ.pop(name, None)
