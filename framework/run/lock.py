"""Kernel locks on files. A lock ends with the last process that holds the file open, however that process ends."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


def try_lock(file: IO[str] | IO[bytes]) -> bool:
    """Lock an open file for this process alone. Returns False at once where another process holds the lock."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def wait_for_lock(file: IO[str] | IO[bytes]) -> bool:
    """Lock an open file for this process alone until it is closed. Returns False where its file system has no locks."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
    except OSError:
        return False
    return True


@contextmanager
def guarded(file: Path) -> Iterator[None]:
    """Hold the lock on `file`, which is created, for the duration of the block; wait for it. Where the file system has
    no locks, the block runs without.
    """
    with file.open("a") as lock:
        wait_for_lock(lock)
        yield
