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


def waits_for_nobody(environment: Mapping[str, str]) -> bool:
    """Whether this process is alone although Slurm's variables tell of several tasks.

    srun numbers the step whose tasks it starts. A shell of `srun --pty` is in a step, too, and whatever is typed there
    runs once.
    """
    if "WORLD_SIZE" in environment or int(environment.get("SLURM_NTASKS") or 1) == 1:
        return False
    return "SLURM_STEP_ID" not in environment or "SLURM_PTY_PORT" in environment


def leave_allocation() -> None:
    """Make a lone process inside an allocation of several tasks one of one, and say so: else it would wait for the
    others for ever.
    """
    if not waits_for_nobody(os.environ):
        return
    tasks = os.environ["SLURM_NTASKS"]
    print(
        f"The allocation holds {tasks} tasks (SLURM_NTASKS), but srun did not start this process: it runs alone. "
        f"To run all {tasks}, start it by srun.",
        file=sys.stderr,
    )
    for name in TASK_VARIABLES:
        os.environ.pop(name, None)
