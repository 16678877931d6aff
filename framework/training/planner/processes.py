"""Work on several items at once, each in a forked process: the stages of a plan do not depend on one another."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import threading
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_processes(work: Callable[[Sequence[Item]], list[Result]], items: Sequence[Item]) -> list[Result | None]:
    """The results of `work` on `items`, which neighbours do in one forked process for each CPU. A process has what was
    imported and built so far. Where they do not divide evenly, the last get more: late stages have the most in common.

    Results are None where a process failed or was killed, and all are where nothing is gained or a process cannot be
    forked safely: with one item or one CPU, next to other threads, after CUDA has started.
    """
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    alone = len(items) < 2 or cpus < 2 or "fork" not in multiprocessing.get_all_start_methods()
    if alone or threading.active_count() > 1 or torch.cuda.is_initialized() or multiprocessing.current_process().daemon:
        return [None] * len(items)
    number = min(cpus, len(items))
    bounds = [len(items) * each // number for each in range(number + 1)]
    return _at_once(work, [items[start:end] for start, end in itertools.pairwise(bounds)])


def _at_once(work: Callable[[Sequence[Item]], list[Result]], groups: Sequence[Sequence[Item]]) -> list[Result | None]:
    context = multiprocessing.get_context("fork")
    started = []
    for group in groups:
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=_send, args=(sender, work, group), daemon=True)
        process.start()
        sender.close()  # so that the end of the process ends the pipe
        started.append((process, receiver, group))
    results: list[Result | None] = []
    for process, receiver, group in started:
        try:
            results += receiver.recv()
        except EOFError:
            results += [None] * len(group)
        process.join()
    return results


def _send(sender: Connection, work: Callable[[Sequence[Item]], list[Result]], items: Sequence[Item]) -> None:
    """Send the results of the work, or nothing where it fails: whoever asks repeats it, and sees the error."""
    torch.set_num_threads(1)  # threads of the parent's pools do not exist here
    try:
        sender.send(work(items))
    except BaseException:
        os._exit(1)
