"""Streams whose shards tests damage, remove and evict."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from streaming import MDSWriter

from framework.data.shards.cache import CachePolicy, ShardCache
from framework.data.shards.reader import ShardReader
from framework.data.shards.record import COLUMNS, encode
from framework.data.shards.storage import Patience
from framework.scene.types import Scene

SCENES = 20
QUICK = Patience(budget_s=1.0, absent_s=0.1, first_s=0.02, most_s=0.1)
POLICY = CachePolicy(patience=QUICK)


def write(
    folder: Path,
    scenes: list[Scene],
    compression: str | None = None,
    hashes: list[str] | None = None,
    change: Callable[[dict[str, Any]], dict[str, Any]] = lambda record: record,
    columns: dict[str, str] = COLUMNS,
) -> Path:
    """A stream as any program may have written it."""
    checked = ["sha1", "xxh64"] if hashes is None else hashes
    with MDSWriter(
        out=str(folder), columns=columns, compression=compression, hashes=checked, size_limit=6000
    ) as writer:
        for scene in scenes:
            writer.write(change(encode(scene)))
    return folder


def opened(remote: Path | str, folder: Path, session: str = "run.1", policy: CachePolicy = POLICY) -> ShardReader:
    return ShardReader(ShardCache(str(remote), folder, policy, session))


def read_all(reader: ShardReader) -> list[Scene]:
    counts = reader.cache.index.samples
    return [reader.scene(shard, place) for shard, count in enumerate(counts) for place in range(count)]


def stored(reader: ShardReader, shard: int) -> Path:
    """A shard's file in a remote folder."""
    return Path(reader.cache.storage.where) / reader.cache.index[shard].stored.name


def cached(reader: ShardReader, shard: int) -> Path:
    return reader.cache.folder / reader.cache.index[shard].raw.name


def spoil(file: Path, how: str) -> None:
    """Flip a bit in the middle of a file, cut its last byte off or remove it; its time stays what it was."""
    content, stat = file.read_bytes(), file.stat()
    middle = len(content) // 2
    match how:
        case "flipped bit":
            file.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
        case "truncated":
            file.write_bytes(content[:-1])
        case "emptied":
            file.write_bytes(b"")
        case "missing":
            file.unlink()
    if file.exists():
        os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def overwrite(file: Path) -> None:
    """Overwrite a file where it lies, as large as it was: who has it open sees it."""
    with file.open("r+b") as opened:
        opened.write(b"\xff" * file.stat().st_size)
