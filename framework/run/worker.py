"""The contract between a supervisor and the workers that it starts: environment variables and one signal."""

from __future__ import annotations

import faulthandler
import os
import signal
from pathlib import Path

from framework.run.parent_death import end_with_parent

ATTEMPT = "FRAMEWORK_ATTEMPT"
"""The attempt's number, on which all nodes have agreed."""
STACKS = "FRAMEWORK_STACKS"
"""The folder of `rank-<n>.txt`, to which a worker writes its stacks when it receives `DUMP`."""
SUPERVISOR = "FRAMEWORK_SUPERVISOR"
"""The process id of what started this one, which does not outlive it: a supervisor, or a run's first rank."""
DUMP = signal.SIGUSR2
"""The signal that asks a worker for its stacks."""


def follow_supervisor() -> None:
    """End when the supervisor ends. Where it asks for stacks, write those of all threads on `DUMP`, even from inside a
    C extension. Without a supervisor nothing happens.
    """
    if SUPERVISOR not in os.environ:
        return
    end_with_parent(int(os.environ[SUPERVISOR]))
    if STACKS not in os.environ:
        return
    file = Path(os.environ[STACKS], f"rank-{os.environ['RANK']}.txt").open("a", encoding="utf-8")  # noqa: SIM115
    faulthandler.register(DUMP, file=file, all_threads=True)


def supervised_attempt() -> int | None:
    """The attempt's number from the supervisor; None without one."""
    attempt = os.environ.get(ATTEMPT)
    return None if attempt is None else int(attempt)


def node() -> int:
    """This node's number in the job, from torchrun, the supervisor or Slurm; 0 where none of them sets it."""
    return int(os.environ.get("GROUP_RANK") or os.environ.get("SLURM_NODEID") or 0)


def local_workers() -> int:
    """The number of workers on this node; 1 where it is not set."""
    return int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("SLURM_NTASKS_PER_NODE") or 1)


def is_first_on_node() -> bool:
    """Whether this is local rank 0: the worker that writes its node's heartbeat and phases."""
    return int(os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_LOCALID") or 0) == 0
