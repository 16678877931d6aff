"""The order in which a stream's samples are trained: endless, and a pure function of seed and position.

For each pass over a stream its shards are shuffled, the sequence of all their samples is divided into `lanes` equal
parts, and within a lane samples are shuffled among their `block` neighbours, so that few shards are needed at a time.
Lanes are the canonical nodes of mosaicml-streaming: a node that trains some of the lanes needs only their shards, and
the order does not depend on the number of nodes. Each lane starts its next pass when it ends one.
"""

from __future__ import annotations

import hashlib
import zlib
from collections import OrderedDict
from collections.abc import Callable
from typing import TypeVar

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.int64]
K = TypeVar("K")
V = TypeVar("V")

CACHED = 4
"""Passes, and blocks of a lane, that are cached: a reader is in one or between two, and there may be two readers."""


class StreamOrder:
    """The endless order of one stream. A sample's number counts the records of all shards before it.

    Args:
        name: The stream's name; streams of different names have different orders.
        samples: Records of every shard, `(shards,)`.
        seed: Seed of the shuffles.
        lanes: Equal parts of a pass, each with a position of its own; the most nodes that can share the stream without
            sharing shards.
        block: Neighbouring samples of a lane that are shuffled among themselves.

    Raises:
        ValueError: There are fewer samples than lanes.
    """

    def __init__(self, name: str, samples: Integers, seed: int, lanes: int = 1, block: int = 1 << 14) -> None:
        if samples.sum() < lanes:
            raise ValueError(
                f"stream {name}: {samples.sum()} samples for data.canonical_nodes: {lanes}; each needs at least one"
            )
        self.name = name
        self.samples = samples
        self.first = np.concatenate([[0], np.cumsum(samples)[:-1]])
        self.total = int(samples.sum())
        self.seed = seed
        self.lanes = lanes
        self.block = block
        self.passes: OrderedDict[int, tuple[Integers, Integers]] = OrderedDict()
        self.blocks: OrderedDict[tuple[int, int, int], Integers] = OrderedDict()

    def at(self, lane: int, start: int, count: int) -> Integers:
        """Returns sample numbers `(count,)` from place `start` of `lane` on, from the lane's very first sample."""
        length = self._bounds(lane)[1] - self._bounds(lane)[0]
        parts = []
        while count > 0:
            turn, place = divmod(start, length)
            block, offset = divmod(place, self.block)
            part = self._block(turn, lane, block)[offset : offset + count]
            parts.append(part)
            start, count = start + len(part), count - len(part)
        return np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)

    def turn(self, lane: int, place: int) -> int:
        """Returns the pass over the stream, from 0, that `place` of `lane` belongs to."""
        begin, end = self._bounds(lane)
        return place // (end - begin)

    def locate(self, sample: int) -> tuple[int, int]:
        """Returns the shard of a sample and its place within it."""
        shard = int(np.searchsorted(self.first, sample, side="right")) - 1
        return shard, int(sample - self.first[shard])

    def fingerprint(self) -> str:
        """Returns a hash of all that the order depends on, numpy's shuffling included: twelve hexadecimal digits."""
        canary = self._generator(0).permutation(1000)
        facts = repr((self.seed, self.lanes, self.block)).encode() + self.samples.tobytes() + canary.tobytes()
        return hashlib.sha256(facts).hexdigest()[:12]

    def _bounds(self, lane: int) -> tuple[int, int]:
        return self.total * lane // self.lanes, self.total * (lane + 1) // self.lanes

    def _pass(self, turn: int) -> tuple[Integers, Integers]:
        """Returns the shards of a pass in order, and the samples up to and including each."""

        def make() -> tuple[Integers, Integers]:
            shards = self._generator(turn).permutation(len(self.samples))
            return shards, np.cumsum(self.samples[shards])

        return _cached(self.passes, turn, make, CACHED)

    def _block(self, turn: int, lane: int, block: int) -> Integers:
        def make() -> Integers:
            begin, end = self._bounds(lane)
            begin += block * self.block
            places = np.arange(begin, min(begin + self.block, end))
            shards, ends = self._pass(turn)
            rank = np.searchsorted(ends, places, side="right")
            samples = self.first[shards[rank]] + places - (ends[rank] - self.samples[shards[rank]])
            return self._generator(turn, 1 + lane, block).permutation(samples)

        return _cached(self.blocks, (turn, lane, block), make, CACHED * self.lanes)

    def _generator(self, *key: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, zlib.crc32(self.name.encode()), *key])


def _cached(cache: OrderedDict[K, V], key: K, make: Callable[[], V], limit: int) -> V:
    if key not in cache:
        cache[key] = make()
        while len(cache) > limit:
            cache.popitem(last=False)
    return cache[key]
