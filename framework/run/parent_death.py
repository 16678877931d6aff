"""Child processes that end with their parent, even with one that was killed."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1
"""prctl(2): the signal that the kernel sends a process when its parent dies."""


def end_with_parent(parent: int) -> None:
    """Have the kernel kill this process when process `parent`, which began it, dies.

    A DataLoader's worker notices that by itself, but then waits for ever to hand over what nobody will read: it would
    keep its memory, and the job's output open, after a kill -9 of its rank. Linux only; elsewhere nothing happens.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before the line above
            os.kill(os.getpid(), signal.SIGKILL)
