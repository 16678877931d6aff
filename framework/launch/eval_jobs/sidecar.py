"""Evaluations beside a supervised run: its first node keeps the watcher, and every job has a last look when it ends."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from framework.launch.spec import load
from framework.run.layout import JOB_FILE

WATCH = (sys.executable, "-m", "framework.launch.eval_jobs.watcher", "--folder")


@contextmanager
def watched(folder: Path) -> Iterator[None]:
    """While the job in `folder` runs, so does the watcher of its checkpoints; when it ends, the run that it belongs to
    is looked at once more: the last checkpoint is evaluated, evaluations of other jobs that failed are submitted again,
    the best is marked. Its own failure a job cannot tell, as it is still there: the next look does.

    Nothing where the job was not submitted, or evaluates nothing. A watcher that dies is not missed before the end: the
    last look finds every checkpoint that it left.
    """
    run = load(folder).watched if (folder / JOB_FILE).is_file() else None
    if run is None:
        yield
        return
    watcher = subprocess.Popen([*WATCH, run, "--until-ended"]) if Path(run) == folder else None
    try:
        yield
    finally:
        if watcher is not None:
            watcher.terminate()
            watcher.wait()
        subprocess.run([*WATCH, run, "--once"], check=False)
