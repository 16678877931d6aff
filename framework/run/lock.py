"""Locks of the kernel on files: they end with the last process that holds the file open, however it ends."""

from __future__ import annotations

import fcntl
from typing import IO


def taken(lock: IO[str] | IO[bytes]) -> bool:
    """Take an open file's lock for this process alone; False, at once, where another has it."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
