"""This machine as a scheduler: jobs run one at a time, each as a process of its own.

A job holds a lock on JOBS/<name>.lock as long as it lives. The lock is taken before the process starts and inherited by
it, so that a job is known from its first instant and forgotten when its last process has died, whoever was killed in
between.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import ClassVar

from framework.launch.spec import RunSpec
from framework.recipe.credentials import mask_output

RANK_VARIABLES = (
    "RANK",
    "LOCAL_RANK",
    "WORLD_SIZE",
    "LOCAL_WORLD_SIZE",
    "GROUP_RANK",
    "MASTER_ADDR",
    "MASTER_PORT",
)
"""Variables that would make a job part of the process group of whoever submits it."""


class LocalScheduler:
    """Jobs of this machine; see `base.Scheduler`. A job is identified by its name.

    Args:
        folder: Where the jobs' locks lie, and a marker for each job that has succeeded.
    """

    name: ClassVar[str] = "local"
    file: ClassVar[str] = "job.local.json"

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder).resolve()

    @property
    def placement(self) -> Mapping[str, str]:
        """See `Scheduler`."""
        return {"folder": str(self.folder)}

    def render(self, specs: Sequence[RunSpec], name: str, output: str) -> str:
        """Render one job as JSON: its name, its overrides and its log."""
        (spec,) = specs
        return json.dumps({"name": name, "overrides": list(spec.overrides), "log": output}, indent=1) + "\n"

    def submit(self, text: str, after: Sequence[str] = ()) -> str:
        """See `Scheduler`. The job's process starts at once and waits for its turn."""
        job = json.loads(text)
        name, log = str(job["name"]), Path(job["log"])
        self.folder.mkdir(parents=True, exist_ok=True)
        log.parent.mkdir(parents=True, exist_ok=True)
        lock = os.open(self._lock(name), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with log.open("ab") as output:
                process = subprocess.Popen(
                    [sys.executable, "-m", __name__, str(self.folder), name, ",".join(after), *job["overrides"]],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,  # it outlives whoever submitted it
                    pass_fds=[lock],
                    env={key: value for key, value in os.environ.items() if key not in RANK_VARIABLES},
                )
            os.ftruncate(lock, 0)
            os.write(lock, json.dumps({"process_group": process.pid, "log": str(log)}).encode())
        finally:
            os.close(lock)
        return name

    def resubmit(self, text: str, job: str) -> str:
        """See `Scheduler`."""
        return self.submit(text)

    def find(self, name: str) -> str | None:
        """See `Scheduler`."""
        return name if self.is_active(name) else None

    def state(self, job: str) -> str | None:
        """See `Scheduler`. A job that waits for its turn is RUNNING too."""
        return "RUNNING" if self.is_active(job) else None

    def is_active(self, job: str) -> bool:
        """See `Scheduler`."""
        if not self._lock(job).is_file():
            return False
        with self._lock(job).open("r+") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False

    def stop(self, job: str) -> None:
        """See `Scheduler`."""
        if self.is_active(job):
            with suppress(ProcessLookupError):
                os.killpg(json.loads(self._lock(job).read_text())["process_group"], signal.SIGTERM)

    def log(self, job: str) -> str:
        """See `Scheduler`."""
        return Path(json.loads(self._lock(job).read_text())["log"]).read_text(encoding="utf-8", errors="replace")

    def run(self, name: str, overrides: Sequence[str], after: Sequence[str]) -> int:
        """Run a job, in its own process: wait for the jobs `after` and for the machine first. Returns the exit code, 1
        where one of the jobs `after` failed.
        """
        for earlier in after:
            with self._lock(earlier).open("r+") as ended:
                fcntl.flock(ended, fcntl.LOCK_SH)
            if not self._done(earlier).is_file():
                print(f"{name}: not started, because {earlier} failed")
                return 1
        with (self.folder / "machine.lock").open("a") as machine:
            fcntl.flock(machine, fcntl.LOCK_EX)
            os.set_inheritable(machine.fileno(), True)
            command = [sys.executable, "-m", "framework", *overrides]
            # The task inherits both locks, as it may outlive this process.
            code = subprocess.run(command, close_fds=False, check=False).returncode
        if code == 0:
            self._done(name).touch()
        return code

    def _lock(self, name: str) -> Path:
        return self.folder / f"{name}.lock"

    def _done(self, name: str) -> Path:
        return self.folder / f"{name}.done"


if __name__ == "__main__":
    mask_output()
    jobs, job, before, *arguments = sys.argv[1:]
    sys.exit(LocalScheduler(jobs).run(job, arguments, before.split(",") if before else ()))
