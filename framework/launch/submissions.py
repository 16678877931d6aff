"""The ledger of a run's submissions, `submissions.jsonl` in its folder: one line for each job that was submitted."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

from framework.run.files import append_line, read_records
from framework.run.layout import SUBMISSIONS_FILE

_JOB = re.compile(r"[A-Za-z0-9][A-Za-z0-9._=,+@/-]*( [A-Za-z0-9][A-Za-z0-9._=,+@/-]*)*")


def record_submission(folder: Path, scheduler: str, job: str, file: Path) -> None:
    """Append that the run in `folder` was submitted to `scheduler` as `job`, rendered into `file`."""
    entry = {"time": time.time(), "scheduler": scheduler, "job": job, "file": str(file)}
    append_line(folder / SUBMISSIONS_FILE, json.dumps(entry))


def submissions(folder: Path) -> list[dict[str, Any]]:
    """The submissions of the run in `folder`, oldest first. Damaged entries are left out."""
    return [entry for entry in read_records(folder / SUBMISSIONS_FILE) if names_job(entry)]


def names_job(entry: dict[str, Any]) -> bool:
    """Whether an entry names a job; what looks like an option of a scheduler's command is none."""
    job, file = entry.get("job"), entry.get("file")
    return isinstance(job, str) and _JOB.fullmatch(job) is not None and isinstance(file, str) and file != ""
