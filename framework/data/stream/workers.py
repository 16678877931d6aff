"""The DataLoader whose worker processes prepare a rank's steps."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import gc
import os
import signal
from collections.abc import Iterable, Iterator
from multiprocessing.context import ForkContext
from typing import Any

import torch
from torch.utils.data import DataLoader

from framework.data.stream.address import Address
from framework.data.stream.dataset import LoadedStep, StepDataset
from framework.run.parent_death import end_with_parent

PIPE_BYTES = 1 << 20
"""Capacity of the pipes through which workers return steps."""


def prepare_steps(
    dataset: StepDataset, steps: Iterable[list[Address]], workers: int, prefetch_factor: int
) -> Iterator[LoadedStep]:
    """Yields every one of `steps` prepared, in order.

    `workers` processes prepare `prefetch_factor` steps each in advance; with 0 workers this process prepares a step
    when it is asked for.
    """
    loader: DataLoader[Any] = DataLoader(
        dataset,
        batch_size=None,
        sampler=steps,
        num_workers=workers,
        prefetch_factor=prefetch_factor if workers else None,
        collate_fn=_identity,
        multiprocessing_context=_WidePipeContext() if workers else None,
        worker_init_fn=functools.partial(_init_worker, os.getpid()),
        generator=torch.Generator(),  # its own: the global generator's draws belong to the model
    )
    return iter(loader)


class _WidePipeContext(ForkContext):
    """Forks workers that return results through pipes of a megabyte instead of 64 KB, in fewer turns."""

    def Queue(self, maxsize: int = 0) -> Any:  # noqa: N802  # the name is multiprocessing's
        queue: Any = super().Queue(maxsize)
        with contextlib.suppress(OSError):  # the system's limit for this user
            fcntl.fcntl(queue._writer.fileno(), fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        return queue


def _identity(step: Any) -> Any:
    return step


def _init_worker(parent: int, _: int) -> None:
    end_with_parent(parent)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # sent to the whole job: the step that is being saved needs workers
    gc.freeze()  # collecting inherited objects would copy the trainer's whole heap, page by page
    torch.set_num_threads(1)
