"""Work on several items at once, each in a forked process: the stages of a plan do not depend on one another."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Sequence
from itertools import islice
from multiprocessing.connection import Connection
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")

AT_ONCE = 2
"""Processes at once per CPU: with more than one, none of the CPUs waits for the longest work."""


def in_processes(work: Callable[[Item], Result], items: Sequence[Item]) -> list[Result | None]:
    """The results of `work` on each of `items`, each in a forked process, which has what was imported and built so far.

    A result is None where its process failed or was killed, and all are where nothing is gained or a process cannot be
    forked safely: with one item or one CPU, next to other threads, after CUDA has started.
    """
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    alone = len(items) < 2 or cpus < 2 or "fork" not in multiprocessing.get_all_start_methods()
    if alone or threading.active_count() > 1 or torch.cuda.is_initialized() or multiprocessing.current_process().daemon:
        return [None] * len(items)
    left, results = iter(items), list[Result | None]()
    while batch := list(islice(left, AT_ONCE * cpus)):
        results += _at_once(work, batch)
    return results


def _at_once(work: Callable[[Item], Result], items: Sequence[Item]) -> list[Result | None]:
    context = multiprocessing.get_context("fork")
    started = []
    for item in items:
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=_send, args=(sender, work, item), daemon=True)
        process.start()
        sender.close()  # so that the end of the process ends the pipe
        started.append((process, receiver))
    results: list[Result | None] = []
    for process, receiver in started:
        try:
            results.append(receiver.recv())
        except EOFError:
            results.append(None)
        process.join()
    return results


def _send(sender: Connection, work: Callable[[Item], Result], item: Item) -> None:
    """Send the result of the work, or nothing where it fails: whoever asks repeats it, and sees the error."""
    torch.set_num_threads(1)  # threads of the parent's pools do not exist here
    try:
        sender.send(work(item))
    except BaseException:
        os._exit(1)
