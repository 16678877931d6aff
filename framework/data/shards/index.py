"""The index of a stream: the samples, sizes and hashes of its shards.

A petabyte has millions of shards, so the index is held as one array of about a hundred bytes a shard. The array is
saved next to the JSON that it was read from and memory-mapped: read once on each node, and shared by its ranks.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import mmap
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import xxhash

from framework.run.files import replacing
from framework.scene.types import SceneError

if TYPE_CHECKING:  # takes seconds, which commands that only look at a recipe do not have
    from streaming.base.format.mds.reader import MDSReader

HASHES = ("xxh64", "xxh3_64", "sha1", "sha256", "md5")
"""Hashes that can be checked, fastest first; the first in the index is used."""
HEAD = 1 << 20
"""Characters of the index within which its first entry ends."""
CHUNK = 4096
"""Entries that exist as Python objects at once."""


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file as the index describes it."""

    name: str
    """Its path relative to the stream's folder."""
    size: int
    """Bytes."""
    digest: tuple[str, str] | None
    """Algorithm and hexadecimal value of its hash; None if the index has none."""


@dataclass(frozen=True, slots=True)
class Shard:
    """One shard of a stream."""

    samples: int
    """Its records."""
    raw: StoredFile
    """The file that records are read from."""
    packed: StoredFile | None
    """Its compressed form, if storage has that."""
    compression: str | None
    """The compression's name in mosaicml-streaming, such as "zstd"."""

    @property
    def stored(self) -> StoredFile:
        """The file in storage."""
        return self.packed or self.raw


class ShardIndex:
    """The shards of one stream, in order, and the reader of their records."""

    def __init__(self, table: npt.NDArray[Any], reader: MDSReader, compression: str | None) -> None:
        self.table = table
        self.reader = reader
        self.compression = compression

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, number: int) -> Shard:
        row = self.table[number]
        packed = _stored(row, "packed") if row["packed_size"] else None
        return Shard(int(row["samples"]), _stored(row, "raw"), packed, self.compression if packed else None)

    def __iter__(self) -> Iterator[Shard]:
        return (self[number] for number in range(len(self)))

    @property
    def samples(self) -> npt.NDArray[np.int64]:
        """The records of every shard, `(shards,)`."""
        return self.table["samples"].astype(np.int64)

    @functools.cached_property
    def _ends(self) -> npt.NDArray[np.int64]:
        """The records up to and including every shard's, `(shards,)`."""
        return np.cumsum(self.samples)

    def locate(self, record: int) -> tuple[int, int]:
        """Returns the shard of a record, which is numbered over all shards, and its place within that."""
        shard = int(np.searchsorted(self._ends, record, side="right"))
        return shard, int(record - self._ends[shard] + self.table["samples"][shard])

    @property
    def largest(self) -> int:
        """The most bytes that one shard needs on disk while it is unpacked."""
        return int((self.table["raw_size"] + self.table["packed_size"]).max())

    def fingerprint(self) -> str:
        """Returns a hash of the shards and their order: twelve hexadecimal digits."""
        facts = hashlib.sha256()
        for name in ("samples", "raw_size", "raw_hash"):
            facts.update(np.ascontiguousarray(self.table[name]).tobytes())
        return facts.hexdigest()[:12]


def read_index(path: Path, where: str) -> ShardIndex:
    """Returns the index in the file `path`, of the stream stored at `where`.

    Raises `SceneError` when it is not an index of MDS shards, has no sample, or has columns that could run code.
    """
    from streaming.base.compression import is_compression
    from streaming.base.format.mds.reader import MDSReader

    saved = saved_table(path)
    try:
        with path.open() as file:
            first = next(_entries(file.read(HEAD)))
        reader = MDSReader.from_json(str(path.parent), None, first)
        reader.validate(allow_unsafe_types=False)
        if not (first["compression"] is None or is_compression(first["compression"])):
            raise ValueError(f"compression {first['compression']} is not known here")
        table = _load(saved, path, first)
    except StopIteration:
        table = np.empty(0)
    except Exception as error:  # whatever other values than the right ones cause
        raise SceneError(
            f"{where}/index.json: {error}: is no index of MDS shards without pickles; write it again"
        ) from error
    if not len(table):
        raise SceneError(f"{where}/index.json: an empty stream, no shard with a sample; convert again or remove it")
    return ShardIndex(table, reader, first.get("compression"))


def saved_table(path: Path) -> Path:
    """Returns where the array of the index in the file `path` is saved; its name is a hash of the index."""
    with path.open("rb") as file:
        size = path.stat().st_size
        digest = xxhash.xxh64(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else b"").hexdigest()
    return path.with_name(f"index.{digest}.npy")


def _load(saved: Path, path: Path, first: dict[str, Any]) -> npt.NDArray[Any]:
    """Returns the table of the index, memory-mapped from `saved`, which is written first if possible."""
    with contextlib.suppress(OSError, ValueError, EOFError):  # it is absent or damaged
        return _mapped(saved)
    table = _table(path.read_text(), first)
    try:
        with replacing(saved, durable=False) as fresh, fresh.open("wb") as file:
            np.save(file, table)
            file.write(_digest(table))
        return _mapped(saved)
    except OSError:  # a folder that is read in place need not be writable
        return table


def _mapped(saved: Path) -> npt.NDArray[Any]:
    """Returns the array in the file `saved`, which ends with its hash. Raises `ValueError` when the hash differs."""
    table: npt.NDArray[Any] = np.load(saved, mmap_mode="r", allow_pickle=False)
    digest = _digest(table)
    with saved.open("rb") as file:
        file.seek(-len(digest), os.SEEK_END)
        if file.read() != digest or table.dtype.names != _COLUMNS:
            raise ValueError(f"{saved}: damaged")
    return table


def _digest(table: npt.NDArray[Any]) -> bytes:
    return xxhash.xxh64(table.view(np.uint8).data).hexdigest().encode()


def _table(text: str, first: dict[str, Any]) -> npt.NDArray[Any]:
    entries, layout = _entries(text), _layout(first)
    chunks = []
    while rows := list(islice(entries, CHUNK)):
        if any(_layout(entry) != layout for entry in rows):
            raise ValueError("its shards have different columns or compressions; merge only alike ones")
        chunks.append([np.array(column) for column in zip(*map(_row, rows), strict=True)])
    columns = [np.concatenate(parts) for parts in zip(*chunks, strict=True)]
    table = np.empty(len(columns[0]), dtype=[(n, c.dtype) for n, c in zip(_COLUMNS, columns, strict=True)])
    for name, column in zip(_COLUMNS, columns, strict=True):
        table[name] = column
    return table[table["samples"] > 0]


def _entries(text: str) -> Iterator[dict[str, Any]]:
    """Yields the entries of an index one by one: all at once would take forty times the memory of the table."""
    begin = re.search(r'"shards"\s*:\s*\[', text)
    if begin is None:
        raise ValueError("it names no shards")
    decoder, place, gap = json.JSONDecoder(), begin.end(), re.compile(r"[\s,]*")
    while True:
        match = gap.match(text, place)
        assert match is not None  # it matches nothing, too
        if text[match.end() : match.end() + 1] == "]":
            return
        entry, place = decoder.raw_decode(text, match.end())
        yield entry


def _layout(entry: dict[str, Any]) -> tuple[Any, ...]:
    return entry["column_names"], entry["column_encodings"], entry.get("compression")


_COLUMNS = ("samples", "raw_name", "raw_size", "raw_hash", "packed_name", "packed_size", "packed_hash")


def _row(entry: dict[str, Any]) -> tuple[Any, ...]:
    packed = entry.get("zip_data") or {"basename": "", "bytes": 0, "hashes": {}}
    raw = entry["raw_data"]
    return (int(entry["samples"]), *_file(raw), *_file(packed))


def _file(facts: dict[str, Any]) -> tuple[bytes, int, bytes]:
    hashes = facts.get("hashes") or {}
    chosen = next((f"{name}:{hashes[name]}" for name in HASHES if name in hashes), "")
    return facts["basename"].encode(), int(facts["bytes"]), chosen.encode()


def _stored(row: Any, kind: str) -> StoredFile:
    algorithm, _, value = row[f"{kind}_hash"].decode().partition(":")
    digest = (algorithm, value) if value else None
    name = row[f"{kind}_name"].decode()
    if name.startswith("/") or ".." in name.split("/"):
        raise SceneError(f"shard {name}: the index has it outside of the stream's folder; trust no file of that stream")
    return StoredFile(name, int(row[f"{kind}_size"]), digest)
