"""Fetches shards to the node before their samples are read: while the model is built, and then ahead of training."""

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

from framework.data.stream.cursor import Cursor, RankSlice, steps_from
from framework.data.stream.mixture import OpenMixture
from framework.run.parent_death import end_with_parent
from framework.scene.types import SceneError

log = logging.getLogger(__name__)

DOWNLOADS = 8
"""Shards that are fetched concurrently."""
RECENT = 4096
"""Shards remembered as fetched; older ones may have been evicted and are fetched again."""


class ShardPrefetcher:
    """A process that walks the order of samples and fetches every shard `distance` optimizer steps before its turn.

    It is a process, not a thread: the trainer forks its workers, and a fork during a download would inherit its locks.
    It ends with the process that started it, and it never fails a run: a shard it could not fetch is fetched, or
    quarantined, where it is read.

    Args:
        mixture: The streams, with the caches that shards are fetched into.
        rank_slice: The samples whose shards are fetched.
        distance: Optimizer steps between the step handed out last and the newest one whose shards are fetched.
    """

    def __init__(self, mixture: OpenMixture, rank_slice: RankSlice, distance: int) -> None:
        self.mixture = mixture
        self.rank_slice = rank_slice
        self.distance = distance
        self.process: Any = None
        self.handed_out: c_longlong | None = None

    def start(self, cursor: Cursor) -> None:
        """Starts at `cursor`; a process that was started before is stopped."""
        self.stop()
        context = multiprocessing.get_context("fork")
        self.handed_out = context.RawValue(c_longlong, cursor.step)  # a lock would outlive a killed holder
        arguments = (self.mixture, self.rank_slice, cursor, self.distance, self.handed_out, os.getpid())
        self.process = context.Process(target=_prefetch, args=arguments, daemon=True, name="shard prefetcher")
        self.process.start()

    def advance(self, step: int) -> None:
        """Tells the process that the samples of `step` were handed out."""
        if self.handed_out is not None:
            self.handed_out.value = step

    def stop(self) -> None:
        """Stops the process, if it was started."""
        if self.process is not None:
            self.process.kill()
            self.process.join()
            self.process = None


def _prefetch(
    mixture: OpenMixture, rank_slice: RankSlice, cursor: Cursor, distance: int, handed_out: c_longlong, parent: int
) -> None:
    end_with_parent(parent)
    gc.freeze()  # as in the DataLoader's workers
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # not the trainer's handler, which makes the ranks agree on a stop
    recent: OrderedDict[tuple[int, int], None] = OrderedDict()
    with ThreadPoolExecutor(DOWNLOADS) as pool:
        for step, after in steps_from(mixture, cursor, rank_slice):
            while after.step > handed_out.value + distance:
                time.sleep(0.05)
            missing = [shard for shard in dict.fromkeys(map(mixture.shard, step)) if shard not in recent]
            list(pool.map(lambda shard: _fetch(mixture, *shard), missing))
            recent.update(dict.fromkeys(missing))
            while len(recent) > RECENT:
                recent.popitem(last=False)


def _fetch(mixture: OpenMixture, stream: int, shard: int) -> None:
    try:
        mixture.readers[stream].cache.path(shard)
    except SceneError as error:
        log.debug("prefetching a shard: %s", error)
