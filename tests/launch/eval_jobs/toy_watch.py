"""A watcher to kill; its scheduler is a folder: `python -m tests.launch.eval_jobs.toy_watch RUN SUITE ...`."""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from framework.launch.eval_jobs.companion import CompanionJobs
from framework.launch.eval_jobs.watcher import watch
from framework.launch.spec import RunSpec, local_spec
from framework.run.evaluations import Wanted
from framework.run.files import write_json


class FolderScheduler:
    """Jobs wait in `folder`/queue until somebody takes them, and are active as long as their file is there."""

    name = "folder"
    file = "job.folder.json"

    def __init__(self, folder: Path, dawdle_s: float = 0.0) -> None:
        self.queue = folder / "queue"
        self.dawdle_s = dawdle_s

    def render(self, specs: Sequence[RunSpec], name: str, output: str) -> str:
        return json.dumps({"name": name, "overrides": list(specs[0].overrides)})

    def submit(self, text: str, after: Sequence[str] = ()) -> str:
        name, overrides = json.loads(text).values()
        time.sleep(random.uniform(0.0, self.dawdle_s))
        write_json(self.queue / f"{name}.json", overrides)
        with (self.queue.parent / "submitted.txt").open("a") as lines:
            lines.write(f"{name}\n")
        time.sleep(random.uniform(0.0, self.dawdle_s))
        return f"number of {name}"

    def find(self, name: str) -> str | None:
        time.sleep(random.uniform(0.0, self.dawdle_s))
        return f"number of {name}" if (self.queue / f"{name}.json").is_file() else None

    def waiting(self) -> dict[str, list[str]]:
        """The overrides of the active jobs."""
        return {file.stem: json.loads(file.read_text()) for file in self.queue.glob("*.json")}


if __name__ == "__main__":
    run, suites = Path(sys.argv[1]), tuple(sys.argv[2:])
    jobs = CompanionJobs(FolderScheduler(run / "scheduler", dawdle_s=0.1), local_spec(run))
    watch(run, jobs, Wanted(suites, suites[0], "drive/ade", "min"), once=False, every_s=0.02)
