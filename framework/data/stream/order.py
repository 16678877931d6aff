"""The order in which a stream's samples are trained: a pure function of seed and position, without end.

A pass over a stream goes like this. Its shards are shuffled; the row of all their samples is cut into `lanes` equal
parts, and within a lane samples are shuffled among their `block` neighbours, so that few shards are needed at a time.
Lanes are what mosaicml-streaming calls canonical nodes: a node that trains some of the lanes needs only their shards,
and the order stays the same whatever the number of nodes. Each lane goes on to its next pass when it ends one.
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

REMEMBERED = 4
"""Passes, and blocks of a lane, that are kept: whoever walks is in one or between two, and may walk twice."""


class StreamOrder:
    """The endless order of the stream `name`, whose shards hold `samples` `(shards,)` records.

    A sample's number counts the records of all shards before it. Raises `ValueError` when there are fewer samples
    than lanes.
    """

    def __init__(self, name: str, samples: Integers, seed: int, lanes: int = 1, block: int = 1 << 14) -> None:
        if samples.sum() < lanes:
            raise ValueError(
                f"stream {name}: {samples.sum()} samples for data.canonical_nodes: {lanes}; every one needs a sample"
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
        """Sample numbers `(count,)` from place `start` of `lane` on, counted from the lane's first sample ever."""
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
        """Which pass over the stream (from 0) `place` of `lane` belongs to."""
        begin, end = self._bounds(lane)
        return place // (end - begin)

    def locate(self, sample: int) -> tuple[int, int]:
        """The shard of a sample and its place within it."""
        shard = int(np.searchsorted(self.first, sample, side="right")) - 1
        return shard, int(sample - self.first[shard])

    def fingerprint(self) -> str:
        """A hash of everything the order depends on, numpy's shuffling included: twelve hexadecimal digits."""
        canary = self._generator(0).permutation(1000)
        facts = repr((self.seed, self.lanes, self.block)).encode() + self.samples.tobytes() + canary.tobytes()
        return hashlib.sha256(facts).hexdigest()[:12]

    def _bounds(self, lane: int) -> tuple[int, int]:
        return self.total * lane // self.lanes, self.total * (lane + 1) // self.lanes

    def _pass(self, turn: int) -> tuple[Integers, Integers]:
        """The shards of a pass in order, and how many samples they hold up to and including each."""

        def make() -> tuple[Integers, Integers]:
            shards = self._generator(turn).permutation(len(self.samples))
            return shards, np.cumsum(self.samples[shards])

        return _remembered(self.passes, turn, make, REMEMBERED)

    def _block(self, turn: int, lane: int, block: int) -> Integers:
        def make() -> Integers:
            begin, end = self._bounds(lane)
            begin += block * self.block
            places = np.arange(begin, min(begin + self.block, end))
            shards, ends = self._pass(turn)
            rank = np.searchsorted(ends, places, side="right")
            samples = self.first[shards[rank]] + places - (ends[rank] - self.samples[shards[rank]])
            return self._generator(turn, 1 + lane, block).permutation(samples)

        return _remembered(self.blocks, (turn, lane, block), make, REMEMBERED * self.lanes)

    def _generator(self, *key: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, zlib.crc32(self.name.encode()), *key])


def _remembered(memory: OrderedDict[K, V], key: K, make: Callable[[], V], most: int) -> V:
    if key not in memory:
        memory[key] = make()
        while len(memory) > most:
            memory.popitem(last=False)
    return memory[key]
