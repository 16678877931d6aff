"""What a supervisor tells the workers that it starts, through their environment, and what a worker owes it."""

from __future__ import annotations

import faulthandler
import os
import signal
from pathlib import Path

from framework.run.parent_death import end_with_parent

ATTEMPT = "FRAMEWORK_ATTEMPT"
"""The attempt's number, which all nodes have agreed on."""
STACKS = "FRAMEWORK_STACKS"
"""The folder for `rank-<n>.txt`, the stacks that a worker writes when it gets `DUMP`."""
SUPERVISOR = "FRAMEWORK_SUPERVISOR"
"""The supervisor's process id: its workers do not outlive it."""
DUMP = signal.SIGUSR2


def follow_supervisor() -> None:
    """End when the supervisor does, and write the stacks of all threads when told to, even inside of a C extension.
    Without a supervisor nothing happens.
    """
    if SUPERVISOR not in os.environ or STACKS not in os.environ:
        return
    end_with_parent(int(os.environ[SUPERVISOR]))
    file = Path(os.environ[STACKS], f"rank-{os.environ['RANK']}.txt").open("a", encoding="utf-8")  # noqa: SIM115
    faulthandler.register(DUMP, file=file, all_threads=True)


def told_attempt() -> int | None:
    """The attempt's number, where a supervisor gave it."""
    told = os.environ.get(ATTEMPT)
    return None if told is None else int(told)


def node() -> int:
    """This node's number in the job, as torchrun, the supervisor or Slurm have it; 0 where nobody says."""
    return int(os.environ.get("GROUP_RANK") or os.environ.get("SLURM_NODEID") or 0)


def local_workers() -> int:
    """Workers on this node; 1 where nobody says."""
    return int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("SLURM_NTASKS_PER_NODE") or 1)


def is_first_on_node() -> bool:
    """True for the one worker of a node that beats the heart and writes the phases."""
    return int(os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_LOCALID") or 0) == 0
