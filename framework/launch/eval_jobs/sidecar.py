"""The watcher that runs next to a job: it submits evaluations of the checkpoints while the job trains."""

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
def watcher_sidecar(folder: Path) -> Iterator[None]:
    """Run a watcher of the run's checkpoints as long as the job in `folder` runs, and look at the run once more when
    the job ends: the last checkpoint is evaluated, evaluation jobs that failed are submitted again, the best checkpoint
    is marked. An evaluation job cannot see its own failure, as it still runs then; the next look does.

    Does nothing for a job that was not submitted or evaluates nothing. If the watcher dies, the last look catches up on
    every checkpoint that it left.
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
