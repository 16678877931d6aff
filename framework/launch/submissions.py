"""The ledger of a run's submissions, `submissions.jsonl` in its folder: one line for each job that was submitted."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from framework.run.files import append_line, read_records
from framework.run.layout import SUBMISSIONS_FILE


def record_submission(folder: Path, scheduler: str, job: str, file: Path) -> None:
    """Append that the run in `folder` was submitted to `scheduler` as `job`, rendered into `file`."""
    entry = {"time": time.time(), "scheduler": scheduler, "job": job, "file": str(file)}
    append_line(folder / SUBMISSIONS_FILE, json.dumps(entry))


def submissions(folder: Path) -> list[dict[str, Any]]:
    """The submissions of the run in `folder`, oldest first."""
    return read_records(folder / SUBMISSIONS_FILE)
