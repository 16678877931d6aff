"""The shards of a stream, from its index: what each holds, how large it is, and the hashes that prove it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from streaming.base.format.mds.reader import MDSReader

from framework.scene.types import SceneError

HASHES = ("xxh64", "xxh3_64", "sha1", "sha256", "md5")
"""Hashes that are checked, fastest first; the first that the index has is the one."""


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file as the index describes it. `digest` is (algorithm, hexadecimal value), None where the index has none."""

    name: str
    size: int
    digest: tuple[str, str] | None


@dataclass(frozen=True, slots=True)
class Shard:
    """One shard: `raw` is what records are read from, `packed` its compressed form where it is stored compressed."""

    samples: int
    raw: StoredFile
    packed: StoredFile | None
    compression: str | None

    @property
    def stored(self) -> StoredFile:
        """The file that storage holds."""
        return self.packed or self.raw


@dataclass(frozen=True)
class ShardIndex:
    """The shards of one stream, in order, and the reader of their records."""

    shards: Sequence[Shard]
    reader: MDSReader

    @property
    def samples(self) -> npt.NDArray[np.int64]:
        """Records of every shard, `(shards,)`."""
        return np.array([shard.samples for shard in self.shards], dtype=np.int64)

    @property
    def largest(self) -> int:
        """The most bytes that one shard needs on disk while it is unpacked."""
        return max(shard.raw.size + (shard.packed.size if shard.packed else 0) for shard in self.shards)

    def fingerprint(self) -> str:
        """A hash of which shards these are, in which order: twelve hexadecimal digits."""
        facts = [(shard.samples, shard.raw.size, shard.raw.digest) for shard in self.shards]
        return hashlib.sha256(repr(facts).encode()).hexdigest()[:12]


def read_index(path: Path, where: str) -> ShardIndex:
    """The index in the file `path`, of the stream that is stored at `where`.

    Raises `SceneError` when it is no index of MDS shards, holds no sample, or columns that could run code.
    """
    try:
        entries = json.loads(path.read_text())["shards"]
        shards = [_shard(entry) for entry in entries if entry["samples"]]
    except (ValueError, KeyError, TypeError) as error:
        raise SceneError(f"{where}/index.json: {error!r}: is no index of MDS shards; write it again") from error
    if not shards:
        raise SceneError(f"{where}/index.json: an empty stream, no shard with a sample; convert again or remove it")
    columns = {(tuple(entry["column_names"]), tuple(entry["column_encodings"])) for entry in entries}
    if len(columns) > 1:
        raise SceneError(
            f"{where}/index.json: its shards have {len(columns)} layouts of columns; merge only alike ones"
        )
    reader = MDSReader.from_json(str(path.parent), None, entries[0])
    try:
        reader.validate(allow_unsafe_types=False)
    except ValueError as error:
        raise SceneError(f"{where}/index.json: {error}; write the records without pickles") from error
    return ShardIndex(shards, reader)


def _shard(entry: dict[str, Any]) -> Shard:
    packed = _file(entry["zip_data"]) if entry.get("zip_data") else None
    return Shard(int(entry["samples"]), _file(entry["raw_data"]), packed, entry.get("compression") if packed else None)


def _file(facts: dict[str, Any]) -> StoredFile:
    hashes = facts.get("hashes") or {}
    chosen = next(((name, hashes[name]) for name in HASHES if name in hashes), None)
    return StoredFile(facts["basename"], int(facts["bytes"]), chosen)
