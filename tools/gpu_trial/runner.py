"""Runs the steps of the trial one after another, each in a process of its own with a limit of its own.

A step that crashes, hangs or runs out of memory leaves the others. While one step measures, the process of the next
one imports what it needs, and waits: importing takes as long as many a step. It touches the device only when told to.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from framework.run.files import read_json, write_json

LEAST_S = 5.0
"""A step is left out where less of the trial's time is left."""
READY = ".ready"
"""Suffix of the file by which a process says that it has imported what it needs."""


@dataclass(frozen=True)
class Task:
    """A step to run."""

    name: str
    """Its name."""
    limit_s: float
    """Seconds after which it is killed."""


class Worker:
    """The process of a step, which waits for its start.

    Args:
        task: The step.
        command: Makes the file of `--result` with the suffix `READY`, runs the step, once a line comes on its standard
            input, and writes its figures to `--result`.
        folder: Where the step's log and figures are kept.
    """

    def __init__(self, task: Task, command: Sequence[str], folder: Path) -> None:
        self.task = task
        self.result = folder / f"{task.name}.json"
        self.ready = self.result.with_suffix(READY)
        self.log = folder / f"{task.name}.log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [*command, "--step", task.name, "--result", str(self.result)],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a step's own processes end with it
            )

    def run(self, limit_s: float, left_s: float) -> dict[str, Any]:
        """Start the step once its process is ready, and return its record. It is given `limit_s` seconds, and with
        what it imports at most `left_s`.
        """
        end = time.monotonic() + left_s
        while not self.ready.exists() and self.process.poll() is None and time.monotonic() < end:
            time.sleep(0.02)
        begin = time.monotonic()
        status: Literal["done", "failed", "timed out"]
        try:
            self.process.communicate(b"go\n", timeout=max(0.0, min(limit_s, end - begin)))
            status = "done" if self.process.returncode == 0 else "failed"
        except subprocess.TimeoutExpired:
            status = "timed out"
        finally:
            self.kill()
        record = {"step": self.task.name, "status": status, "seconds": round(time.monotonic() - begin, 1)}
        figures = read_json(self.result)
        if status != "done":
            record["end_of_log"] = self.log.read_text(errors="replace").splitlines()[-15:]
        return record | {"figures": figures or {}}

    def kill(self) -> None:
        """End the process and all that it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def run_all(
    tasks: Sequence[Task], command: Sequence[str], budget_s: float, folder: Path, facts: Mapping[str, Any], path: Path
) -> list[dict[str, Any]]:
    """Run `tasks` within `budget_s` seconds, and return their records. `path` has the `facts` and all records so far,
    whatever happens.

    Args:
        tasks: The steps, the worthiest first.
        command: See `Worker`.
        budget_s: Seconds for all of them.
        folder: See `Worker`.
        facts: What the file says in addition.
        path: The file.
    """
    records: list[dict[str, Any]] = []
    end = time.monotonic() + budget_s
    workers = [Worker(tasks[0], command, folder)]
    try:
        for index, task in enumerate(tasks):
            if index + 1 < len(tasks):
                workers.append(Worker(tasks[index + 1], command, folder))
            left = end - time.monotonic()
            if left < LEAST_S:
                records.append({"step": task.name, "status": "no time left", "seconds": 0.0, "figures": {}})
            else:
                records.append(workers[index].run(task.limit_s, left))
            print(f"{task.name}: {records[-1]['status']}, {records[-1]['seconds']} s", file=sys.stderr, flush=True)
            write_json(path, {**facts, "steps": records}, durable=False)
    finally:
        for worker in workers:
            worker.kill()
    return records
