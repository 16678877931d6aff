"""Checkpoint daemons that are forked from their trainer: a fresh one imports torch, which takes six seconds of a core.

`test_asynchronous.py` has a trainer whose daemon is started as ever.
"""

from __future__ import annotations

import os
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from framework.checkpoint import daemon

STANDARD = (0, 1, 2)


class Forked:
    """What `Daemon` uses of `subprocess.Popen`."""

    returncode: int | None = None

    def __init__(self, command: Sequence[str], pass_fds: Sequence[int], **_: Any) -> None:
        self.pid = os.fork()
        if self.pid == 0:
            _begin(*pass_fds)

    def poll(self) -> int | None:
        """Its exit code; None while it runs."""
        if self.returncode is None:
            ended, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if ended else None
        return self.returncode

    def kill(self) -> None:
        """Does nothing to one that has ended."""
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)

    def wait(self, timeout: float) -> None:
        """Raises `TimeoutExpired` when it runs for more than `timeout` seconds."""
        limit = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > limit:
                raise subprocess.TimeoutExpired("daemon", timeout)
            time.sleep(0.01)


FORKING: Any = SimpleNamespace(Popen=Forked, DEVNULL=subprocess.DEVNULL, TimeoutExpired=subprocess.TimeoutExpired)
"""Takes the place of `daemon.subprocess`."""


def fork_daemons() -> None:
    """Have this process fork its daemons from now on."""
    daemon.subprocess = FORKING


def _begin(descriptor: int) -> None:
    """Be a daemon, without the trainer's files: as long as one has a connection open, nobody sees the trainer end."""
    try:
        os.closerange(max(STANDARD) + 1, descriptor)
        os.closerange(descriptor + 1, os.sysconf("SC_OPEN_MAX"))
        silence = os.open(os.devnull, os.O_RDWR)
        for standard in STANDARD[:2]:
            os.dup2(silence, standard)
        sys.argv = ["daemon", str(descriptor)]
        runpy.run_module(daemon.__name__, run_name="__main__")
    finally:
        os._exit(1)
