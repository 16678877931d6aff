"""A watcher to kill; its scheduler is a folder: `python -m tests.launch.eval_jobs.toy_watch RUN SUITE ...`."""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from framework.launch.eval_jobs.watcher import watch
from framework.run.evaluations import Wanted
from framework.run.files import write_json


class FolderScheduler:
    """Jobs wait in `folder`/queue until somebody takes them, and are known as long as their file is there."""

    def __init__(self, folder: Path, dawdle_s: float = 0.0) -> None:
        self.queue = folder / "queue"
        self.dawdle_s = dawdle_s

    def submit(self, name: str, words: Sequence[str], folder: Path, after: Sequence[str] = ()) -> str:
        time.sleep(random.uniform(0.0, self.dawdle_s))
        write_json(self.queue / f"{name}.json", list(words))
        with (self.queue.parent / "submitted.txt").open("a") as lines:
            lines.write(f"{name}\n")
        time.sleep(random.uniform(0.0, self.dawdle_s))
        return f"number of {name}"

    def find(self, name: str) -> str | None:
        time.sleep(random.uniform(0.0, self.dawdle_s))
        return f"number of {name}" if (self.queue / f"{name}.json").is_file() else None

    def waiting(self) -> dict[str, list[str]]:
        """The words of the jobs there are."""
        return {file.stem: json.loads(file.read_text()) for file in self.queue.glob("*.json")}


if __name__ == "__main__":
    run, suites = Path(sys.argv[1]), tuple(sys.argv[2:])
    scheduler = FolderScheduler(run / "scheduler", dawdle_s=0.1)
    watch(run, scheduler, Wanted(suites, suites[0], "drive/ade", "min"), once=False, every_s=0.02)
