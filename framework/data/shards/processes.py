"""Writes parts in processes of this machine, one for each part, so that the death of one concerns no other."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkProcess

from framework.data.shards.parts import PartJob
from framework.run.parent_death import end_with_parent

log = logging.getLogger(__name__)

TRIES = 3
"""How often a part is tried before it is given up."""
Outcome = tuple[int, str | None]
"""The number of a part that is over, and why it failed; None where it is written."""
Engine = Callable[[PartJob, Sequence[int]], Iterator[Outcome]]
"""Writes the parts of those numbers somewhere and yields the outcome of each, in any order."""


def in_processes(job: PartJob, numbers: Sequence[int], workers: int = 1) -> Iterator[Outcome]:
    """Writes parts by `workers` processes, by this one where it is one. See `Engine`."""
    if workers <= 1:
        for number in numbers:
            yield number, retried(lambda number=number: job.attempt(number), job.name(number))  # type: ignore[misc]
        return
    waiting = deque((number, 1) for number in numbers)
    running: dict[Connection, tuple[ForkProcess, int, int]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                number, attempt = waiting.popleft()
                receiver, process = _start(job, number)
                running[receiver] = process, number, attempt
            over = wait(list(running))
            for receiver in [receiver for receiver in running if receiver in over]:
                process, number, attempt = running.pop(receiver)
                error = _result(receiver, process)
                if error is None or attempt == TRIES:
                    yield number, error
                else:
                    log.warning("%s: %s; tried again", job.name(number), error)
                    waiting.append((number, attempt + 1))
    finally:
        for process, _, _ in running.values():
            process.kill()
            process.join()


def retried(attempt: Callable[[], str | None], name: str) -> str | None:
    """Returns what went wrong the last of `TRIES` times; None once nothing did."""
    for number in range(1, TRIES + 1):
        error = attempt()
        if error is None or number == TRIES:
            return error
        log.warning("%s: %s; tried again", name, error)
    return None


def _start(job: PartJob, number: int) -> tuple[Connection, ForkProcess]:
    # As DataLoader's workers: a fresh interpreter would import torch for 15 s.
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_attempt, args=(job, number, sender, os.getpid()))
    process.start()
    sender.close()  # so that the pipe ends with the process, however that ends
    return receiver, process


def _attempt(job: PartJob, number: int, sender: Connection, parent: int) -> None:
    end_with_parent(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its processes
    sender.send(job.attempt(number))


def _result(receiver: Connection, process: ForkProcess) -> str | None:
    """Returns why a process's part failed; None where it is written."""
    error: str | None = None
    with receiver:
        try:
            error = receiver.recv()
        except EOFError:
            error = ""
    process.join()
    if error == "":
        code, name = process.exitcode or 0, "exit code"
        with suppress(ValueError):
            name = signal.Signals(-code).name
        return f"its process ended ({name} {code}), likely for want of memory; give fewer --workers"
    return error
