"""Reads a stream's records by shard and place."""

from __future__ import annotations

import mmap
import time
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from framework.data.shards.cache import CachePolicy, ShardCache, ShardError
from framework.data.shards.record import decode
from framework.scene.types import Scene, SceneError

OPEN_SHARDS = 64
"""Shards that a reader keeps mapped, those used last."""


class ShardReader:
    """Reads the records of the shards in a cache. It pickles without its open shards.

    Args:
        cache: The stream's shards.

    Attributes:
        waited_s: Seconds that reads have waited for shards so far.
    """

    def __init__(self, cache: ShardCache) -> None:
        self.cache = cache
        self.maps: OrderedDict[int, mmap.mmap] = OrderedDict()
        self.waited_s = 0.0

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"maps": OrderedDict()}

    def scene(self, shard: int, place: int) -> Scene:
        """Returns the scene of a record. A shard that was damaged since it was verified is fetched again, once.

        Raises `SceneError` for a damaged record in an intact shard, and what `open` raises.
        """
        self.open(shard)
        try:
            return decode(self.record(shard, place))
        except SceneError:
            self.maps.pop(shard, None)
            if not self.cache.recheck(shard):
                raise
            return decode(self.record(shard, place))

    def sample(self, shards: int, scenes: int) -> Iterator[Scene]:
        """Yields up to `scenes` scenes of each of up to `shards` shards, both evenly spaced. Those that cannot be read
        are left out.
        """
        counts = self.cache.index.samples
        for shard in np.unique(np.linspace(0, len(counts) - 1, shards).round().astype(int)).tolist():
            for place in np.unique(np.linspace(0, counts[shard] - 1, scenes).round().astype(int)).tolist():
                try:
                    scene = self.scene(shard, place)
                except ShardError:
                    break  # none of its records can be read
                except SceneError:
                    continue
                yield scene

    def record(self, shard: int, place: int) -> dict[str, Any]:
        """Returns the columns of a record.

        MDS is the number of records, the offsets of all and of the end (uint32), the records. Raises `SceneError` for a
        record that is damaged.
        """
        view = self.open(shard)
        try:
            count = int(np.frombuffer(view, np.uint32, count=1)[0])
            if place >= count:
                raise SceneError(f"record {place}: the shard has {count}, its index counts more; write both again")
            start, end = np.frombuffer(view, np.uint32, count=2, offset=4 * (1 + place))
            return self.cache.index.reader.decode_sample(view[start:end])
        except SceneError:
            raise
        except Exception as error:  # each of the columns' decoders has its own
            raise SceneError(
                f"record {place}: {type(error).__name__}: {error}: no MDS record; verify the shard and write it again"
            ) from error

    def open(self, shard: int) -> mmap.mmap:
        """Returns the bytes of a shard. Raises `CorruptShardError` and `SceneError` as `ShardCache.path` does."""
        if shard in self.maps:
            self.maps.move_to_end(shard)
            return self.maps[shard]
        start = time.perf_counter()
        self.maps[shard] = _open(self.cache, shard)
        self.waited_s += time.perf_counter() - start
        while len(self.maps) > OPEN_SHARDS:
            self.maps.popitem(last=False)
        return self.maps[shard]


def open_reader(remote: str, folder: Path) -> ShardReader:
    """Returns a reader of the shards at `remote`, which are cached in `folder`, outside of a run."""
    return ShardReader(ShardCache(remote, folder, CachePolicy(), session=""))


def _open(cache: ShardCache, shard: int) -> mmap.mmap:
    while True:
        path = cache.path(shard)
        try:
            with path.open("rb") as file:
                return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError as error:
            raise SceneError(f"{path}: {error}; write the shard again") from error
        except FileNotFoundError:  # evicted between the two lines above: fetch it again
            continue
