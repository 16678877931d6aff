"""Child processes that end with their parent, even with one that was killed."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1
"""prctl(2): the signal that the kernel sends a process when its parent dies."""


def end_with_parent(parent: int, by: signal.Signals = signal.SIGKILL) -> None:
    """Have the kernel send this process the signal `by` when process `parent`, which started it, dies, or the thread
    that did. Linux only; elsewhere a no-op.

    A DataLoader's worker notices its parent's death, but then waits forever to hand over a batch that nobody reads.
    After a kill -9 of its rank it would keep its memory, and the job's output open.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, by)
        if os.getppid() != parent:  # the parent died before the line above
            os.kill(os.getpid(), signal.SIGKILL)
