"""Jobs on this machine, one after another: a scheduler where there is none.

A job is a process that holds a lock on JOBS/<name>.lock as long as it lives: the lock is taken before the process is
made and inherited by it, so that a job is known from its first instant, and forgotten when its last process has died,
whoever was killed in between.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

RANKS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")
"""Variables that would make a job part of whatever started it."""


class LocalJobs:
    """Jobs of this machine, kept in `folder`. Satisfies `beside.Scheduler`; a job is called by its name."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()

    def submit(self, name: str, words: Sequence[str], folder: Path, after: Sequence[str] = ()) -> str:
        """Start the job's process, which waits for its turn. Its output goes to `folder`/`name`.log."""
        self.folder.mkdir(parents=True, exist_ok=True)
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(self._lock(name), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with (folder / f"{name}.log").open("ab") as output:
                subprocess.Popen(
                    [sys.executable, "-m", __name__, str(self.folder), name, ",".join(after), *words],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,  # it outlives who submitted it
                    pass_fds=[lock],
                    env={key: value for key, value in os.environ.items() if key not in RANKS},
                )
        finally:
            os.close(lock)
        return name

    def find(self, name: str) -> str | None:
        """See `beside.Scheduler`."""
        if not self._lock(name).is_file():
            return None
        with self._lock(name).open("r+") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return name
        return None

    def run(self, name: str, words: Sequence[str], after: Sequence[str]) -> int:
        """Inside a job: wait for the jobs `after` and for the machine, then do it. Returns the exit code, 1 where one
        of those before failed.
        """
        for earlier in after:
            with self._lock(earlier).open("r+") as over:
                fcntl.flock(over, fcntl.LOCK_SH)
            if not self._done(earlier).is_file():
                print(f"{name}: not begun, since {earlier} failed")
                return 1
        with (self.folder / "machine.lock").open("a") as machine:
            fcntl.flock(machine, fcntl.LOCK_EX)
            os.set_inheritable(machine.fileno(), True)
            # Both locks go to the task, which may outlive this process.
            code = subprocess.run([sys.executable, "-m", "framework", *words], close_fds=False, check=False).returncode
        if code == 0:
            self._done(name).touch()
        return code

    def _lock(self, name: str) -> Path:
        return self.folder / f"{name}.lock"

    def _done(self, name: str) -> Path:
        return self.folder / f"{name}.done"


if __name__ == "__main__":
    jobs, job, before, *task = sys.argv[1:]
    sys.exit(LocalJobs(Path(jobs)).run(job, task, before.split(",") if before else ()))
