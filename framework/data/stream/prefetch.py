"""Brings shards to the node before they are needed: while the model is being built, and then ahead of training."""

from __future__ import annotations

import gc
import logging
import multiprocessing
import os
import signal
import time
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from ctypes import c_longlong
from typing import Any

from framework.data.stream.cursor import Cursor, Split, steps
from framework.data.stream.mixture import OpenMixture
from framework.run.parent_death import end_with_parent
from framework.scene.types import SceneError

log = logging.getLogger(__name__)

DOWNLOADS = 8
"""Shards that are fetched at a time."""
RECENT = 4096
"""Shards that are known to have been fetched; older ones may have been evicted and are asked for again."""


class Ahead:
    """A process that walks the order of samples and has every shard fetched `steps` optimizer steps before its turn.

    A process, not a thread: the trainer forks its workers, and a fork amid a download would inherit its locks. It ends
    with the process that began it, and never fails a run: what it could not fetch is fetched, or refused, where it is
    read.
    """

    def __init__(self, mixture: OpenMixture, split: Split, distance: int) -> None:
        self.mixture = mixture
        self.split = split
        self.distance = distance
        self.process: Any = None
        self.handed_out: c_longlong | None = None

    def start(self, cursor: Cursor) -> None:
        """Begin at `cursor`, instead of wherever it was."""
        self.stop()
        context = multiprocessing.get_context("fork")
        self.handed_out = context.RawValue(c_longlong, cursor.step)  # a lock would outlive a killed holder
        arguments = (self.mixture, self.split, cursor, self.distance, self.handed_out, os.getpid())
        self.process = context.Process(target=_fetch_all, args=arguments, daemon=True, name="shards ahead")
        self.process.start()

    def advance(self, step: int) -> None:
        """Training has been handed the samples of `step`."""
        if self.handed_out is not None:
            self.handed_out.value = step

    def stop(self) -> None:
        """End it, where it was started."""
        if self.process is not None:
            self.process.kill()
            self.process.join()
            self.process = None


def _fetch_all(
    mixture: OpenMixture, split: Split, cursor: Cursor, distance: int, handed_out: c_longlong, parent: int
) -> None:
    end_with_parent(parent)
    gc.freeze()  # see the loader's workers
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # not the trainer's, which has the ranks agree on when to stop
    recent: OrderedDict[tuple[int, int], None] = OrderedDict()
    with ThreadPoolExecutor(DOWNLOADS) as pool:
        for step, after in steps(mixture, cursor, split):
            while after.step > handed_out.value + distance:
                time.sleep(0.05)
            wanted = [shard for shard in dict.fromkeys(map(mixture.shard, step)) if shard not in recent]
            list(pool.map(lambda shard: _fetch(mixture, *shard), wanted))
            recent.update(dict.fromkeys(wanted))
            while len(recent) > RECENT:
                recent.popitem(last=False)


def _fetch(mixture: OpenMixture, stream: int, shard: int) -> None:
    try:
        mixture.readers[stream].cache.path(shard)
    except SceneError as error:
        log.debug("fetching ahead: %s", error)
