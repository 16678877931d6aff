"""Kernel locks on files. A lock ends with the last process that holds the file open, however that process ends."""

from __future__ import annotations

import fcntl
from typing import IO


def try_lock(file: IO[str] | IO[bytes]) -> bool:
    """Lock an open file for this process alone. Returns False at once where another process holds the lock."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
