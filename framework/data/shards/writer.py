"""Writes scenes as MDS shards: in parts, resumable, and visible only when complete. See `framework.data.shards.parts`
for the layout of a folder.
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from framework.data.shards import parts
from framework.data.shards.parts import SHARD_BYTES, PartJob, Work
from framework.data.shards.processes import Engine, Outcome, in_processes
from framework.data.shards.summary import Summary
from framework.run.console import duration, progress_bar
from framework.run.lock import try_lock
from framework.scene.types import SceneError

log = logging.getLogger(__name__)

PART_ITEMS, PARTS = 32, 1024
"""The least number of items of a part, and the number of parts of large work."""
WAIT_S = 3600.0
"""Seconds that a process waits for another that writes the same shards."""
ENDING_S = 10.0
"""Seconds in which the processes of a killed writer end."""
REPORT_S = 30.0
"""Seconds between two lines of progress where no terminal shows a bar."""


def write_shards(
    work: Work[Any],
    folder: Path,
    workers: int = 1,
    part_items: int | None = None,
    shard_bytes: int = SHARD_BYTES,
    quiet: bool = False,
    engine: Engine | None = None,
    without_failed: bool = False,
) -> Summary:
    """Writes all of `work` to `folder`. Parts that an earlier call finished are kept, unfinished ones written again.

    Args:
        work: What is written.
        folder: Where; it becomes a stream when all parts are written.
        workers: Processes, where no `engine` is given.
        part_items: Items of a part; None divides the work into at most `PARTS`.
        shard_bytes: The most bytes of a shard before compression.
        quiet: Whether no progress is shown.
        engine: What writes the parts; None: processes of this machine.
        without_failed: Whether the folder becomes a stream although parts failed; the summary lists these.

    Raises:
        SceneError: `folder` holds the shards of other work or is being written, no record could be written, or parts
            failed after all others were written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    size = part_items or max(PART_ITEMS, -(-len(work.items) // PARTS))
    with _alone(folder):
        parts.claim(folder, work, size)
        job = PartJob(folder, dict(enumerate(parts.divide(work, size))), work.scenes, work.tasks, shard_bytes)
        if engine is None:  # whose processes are no more
            parts.remove_unfinished(folder)
        failed = _run(job, engine or functools.partial(in_processes, workers=workers), quiet)
        if failed and not without_failed:
            raise SceneError(
                f"{folder}: {len(failed)} of {len(job.parts)} parts failed, the others are kept: {'; '.join(failed)}; "
                "mend the cause and write again, which tries these alone"
            )
        summary = Summary(dropped=dict(work.dropped), failed=failed)
        written = [number for number in job.parts if parts.is_written(folder, number)]
        for number in written:
            summary.add(parts.read_summary(folder, number))
        if summary.records == 0:
            raise SceneError(f"{folder}: no record could be written\n{summary}")
        parts.merge(folder, written, summary)
        parts.remove_unfinished(folder)
    return summary


def _run(job: PartJob, engine: Engine, quiet: bool) -> list[str]:
    """Writes the parts that are missing. Returns those that failed, each with the reason."""
    todo = [number for number in job.parts if not parts.is_written(job.folder, number)]
    done, failed = len(job.parts) - len(todo), []
    name = f"writing {job.folder.name}"
    with nullcontext() if quiet else progress_bar("writing scenes", len(job.parts), done) as bar:
        rate, reported = _Rate(job.folder), time.monotonic()
        for count, (number, error) in enumerate(engine(job, todo), start=1):
            if error is not None:
                failed.append(f"{job.name(number)}: {error}")
                log.error("failed: %s", failed[-1])
            figures = rate.after((number, error))
            if bar is not None:
                bar.update(done + count, figures)
            elif not quiet and time.monotonic() - reported > REPORT_S:
                reported = time.monotonic()
                left = duration(rate.elapsed / count * (len(todo) - count))
                log.info("%s: %d of %d %s, %s left", name, done + count, len(job.parts), figures, left)
    return failed


class _Rate:
    """The records of finished parts, and how many a second are written."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.start = time.monotonic()
        self.records = self.skipped = 0

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self.start

    def after(self, outcome: Outcome) -> str:
        """Returns the figures after one more part."""
        number, error = outcome
        if error is None:
            summary = parts.read_summary(self.folder, number)
            self.records += summary.records
            self.skipped += len(summary.skipped)
        figures = f"parts, {self.records:,} records, {self.records / max(self.elapsed, 1e-6):,.1f}/s"
        return f"{figures}, {self.skipped:,} skipped" if self.skipped else figures


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Holds the folder's lock. Raises `SceneError` where another process does for `ENDING_S` seconds."""
    deadline = time.monotonic() + ENDING_S
    with (folder / "write.lock").open("w") as lock:
        while not try_lock(lock):
            if time.monotonic() > deadline:
                raise SceneError(f"{folder}: another process is writing it; wait for it, or end it")
            time.sleep(0.1)
        yield


def write_once(folder: Path, write: Callable[[], Summary]) -> None:
    """Writes the shards of `folder` in one of the processes that call this; the others wait until they are complete.

    The kernel's lock ends with the process that holds it; the next process continues where that one died.
    Raises `SceneError` after `WAIT_S` seconds of waiting.
    """
    index, deadline = folder / "index.json", time.monotonic() + WAIT_S
    if index.is_file():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".lock").open("w") as lock:
        while not try_lock(lock):
            if time.monotonic() > deadline:
                raise SceneError(
                    f"{folder}: another process has been writing it for {WAIT_S:.0f} s; see whether it hangs"
                )
            time.sleep(0.2)
        if not index.is_file():
            log.info("%s", write())
