"""The node's cache of a stream's shards: fetched once for all ranks, verified when opened, evicted when space is short.

Processes coordinate through the file system alone: a kernel lock per shard, which ends with the process that holds it,
and a marker next to each file that records its verification. Nothing is shared in memory, so that a killed job leaves
no state that could disturb the next one.

    shard.00000.mds            the shard, unpacked
    shard.00000.mds.verified   session, size and modification time of the file when its hash was verified
    .locks/                    kernel locks
    .used                      bytes that the shards take, those being fetched included
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import json
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from typing import Annotated

import xxhash
from annotated_types import Interval

from framework.data.shards.index import Shard, ShardIndex, StoredFile, read_index, saved_table
from framework.data.shards.storage import FULL, Folder, Patience, Storage, storage_at
from framework.recipe.component import component
from framework.recipe.ranges import Seconds
from framework.scene.types import SceneError

log = logging.getLogger(__name__)

LOCKS = 256
USED_SHARE = 0.9
"""Share of the limit that eviction leaves in use, so that it does not run at every shard. The rest also holds what
other processes are fetching, which eviction does not count.
"""
FETCHES = 3
"""Fetches with a wrong hash after which a shard is corrupt."""


class ShardError(SceneError):
    """A shard that cannot be fetched, which is no fault of its samples."""


class CorruptShardError(ShardError):
    """A shard that is damaged in storage."""


@component
@dataclass(frozen=True)
class CachePolicy:
    """How the shards of each stream are cached."""

    limit_gb: Annotated[float, Interval(ge=1e-6, le=1e9)] | None = None
    """Gigabytes that a stream's shards may take on the node; None never evicts."""
    patience: Patience = field(default_factory=Patience)
    """How failing storage is retried."""
    stall_s: Seconds = 20.0
    """Seconds without data after which a connection counts as failed."""


class ShardCache:
    """The cache of one stream.

    Args:
        remote: Folder or URL where the shards are stored.
        folder: Local folder of the cache. If it is the remote folder itself, shards are read in place and only unpacked
            ones are ever evicted.
        policy: Limits and retries.
        session: Names the run's attempt; every file is verified once in each session on each node.

    Raises:
        SceneError: The index cannot be used, or the limit is smaller than two shards.
    """

    def __init__(self, remote: str, folder: Path, policy: CachePolicy, session: str) -> None:
        self.storage: Storage = storage_at(remote, policy.stall_s)
        self.folder = folder
        self.policy = policy
        self.session = session
        self.in_place = isinstance(self.storage, Folder) and Path(self.storage.where).resolve() == folder.resolve()
        self.corrupt: dict[int, str] = {}
        with self._on_disk():
            (folder / ".locks").mkdir(parents=True, exist_ok=True)
            self.index = self._read_index()
        self.replaceable = not self.in_place or bool(self.index.table["packed_size"].all())
        self._check_limit()

    def path(self, number: int) -> Path:
        """Returns the file of shard `number`, complete and verified.

        Raises `CorruptShardError` when it is damaged in storage, from then on at every call of this process;
        `SceneError` when it cannot be fetched.
        """
        if number in self.corrupt:
            raise CorruptShardError(self.corrupt[number])
        shard = self.index[number]
        file = self.folder / shard.raw.name
        if not self._trusted(file):
            try:
                with self._on_disk(), self._lock(str(number % LOCKS)):
                    self._make_good(shard, file)
            except CorruptShardError as error:
                self.corrupt[number] = str(error)
                raise
        return file

    def recheck(self, number: int) -> bool:
        """Returns whether shard `number` was damaged since it was verified. If so it is removed, to be fetched again.

        Raises `CorruptShardError` when it is the only copy.
        """
        shard = self.index[number]
        file = self.folder / shard.raw.name
        with self._on_disk(), self._lock(str(number % LOCKS)):
            intact = _intact(file, shard.raw)
            if intact is False:
                self._discard(shard, file)
            return not intact

    def _make_good(self, shard: Shard, file: Path) -> None:
        """Verifies the shard, or fetches it. Requires the shard's lock."""
        if self._trusted(file):
            return
        intact = _intact(file, shard.raw)
        if intact:
            with contextlib.suppress(FileNotFoundError):  # evicted just now: the reader asks again
                self._trust(file, file)
            return
        if intact is False:
            self._discard(shard, file)
        self._fetch(shard, file)

    def _discard(self, shard: Shard, file: Path) -> None:
        """Removes a damaged file, unless it is the only copy."""
        if self.in_place and shard.packed is None:
            raise CorruptShardError(f"{file}: differs from the index (size or hash): it is damaged; write it again")
        log.warning("%s: differs from the index (size or hash); it is fetched again", file)
        file.unlink(missing_ok=True)
        _marker(file).unlink(missing_ok=True)
        self._book(-shard.raw.size)

    def _fetch(self, shard: Shard, file: Path) -> None:
        """Fetches one shard; nothing is visible under its name before it is complete and its hash is right."""
        file.parent.mkdir(parents=True, exist_ok=True)
        arrived = file.with_name(f"{file.name}.arriving")
        booked = shard.raw.size + (shard.packed.size if shard.packed else 0)
        self._book(booked)
        try:
            for _ in range(FETCHES):
                self._store(shard, arrived)
                if _intact(arrived, shard.raw):
                    self._trust(file, arrived)
                    arrived.replace(file)
                    booked -= shard.raw.size
                    return
            raise CorruptShardError(
                f"{self.storage.where}/{shard.stored.name}: its hash or size is wrong in storage, {FETCHES} times "
                "over: write it again, or let data.corrupt_shards be 'quarantine'"
            )
        finally:
            arrived.unlink(missing_ok=True)
            self._book(-booked)

    def _store(self, shard: Shard, to: Path) -> None:
        if shard.packed is None:
            self._download(shard.raw, to)
            return
        packed = to.with_name(f"{to.name}.packed")
        try:
            self._download(shard.packed, packed)
            to.write_bytes(_unpacked(packed, shard))
        finally:
            packed.unlink(missing_ok=True)

    def _download(self, stored: StoredFile, to: Path) -> None:
        """Fetches a file, with retries."""
        patience, where = self.policy.patience, self.storage.where
        try:
            patience.retry(lambda: self.storage.fetch(stored.name, to), f"shard {stored.name}")
        except FileNotFoundError as error:
            raise ShardError(
                f"{where}/{stored.name}: is missing, though the index names it; write or copy it again"
            ) from error
        except OSError as error:
            if error.errno in FULL:
                raise
            raise ShardError(
                f"{where}: no answer within data.cache.patience ({patience.budget_s:g} s): {error}; mend storage or "
                "its credentials, or raise budget_s"
            ) from error

    def _read_index(self) -> ShardIndex:
        """Reads the stream's index, fetched in every session since data may have been added."""
        path = self.folder / "index.json"
        if not self.in_place:
            with self._lock("index"):
                arrived = path.with_name("index.json.arriving")
                try:
                    self.policy.patience.retry(
                        lambda: self.storage.fetch("index.json", arrived), f"{self.storage.where}/index.json"
                    )
                except OSError as error:
                    if error.errno in FULL:
                        raise
                    raise SceneError(
                        f"{self.storage.where}: its index.json cannot be read ({error}); give a folder of shards and "
                        "see that its credentials are here"
                    ) from error
                arrived.replace(path)
                self._fetch_table(saved_table(path))
        elif not path.is_file():
            raise SceneError(f"{self.folder}: no index.json: not a folder of shards; write or convert it first")
        return read_index(path, self.storage.where)

    def _fetch_table(self, table: Path) -> None:
        """Fetches the index as an array where storage has it, which saves minutes on millions of shards."""
        if not table.is_file():
            arrived = table.with_suffix(".arriving")
            with contextlib.suppress(OSError):
                self.storage.fetch(table.name, arrived)
                arrived.replace(table)

    # Verification

    def _trusted(self, file: Path) -> bool:
        try:
            return json.loads(_marker(file).read_text()) == self._identity(file)
        except (OSError, ValueError):
            return False

    def _trust(self, file: Path, now: Path) -> None:
        """Records that `file` is verified, or will be once `now` is renamed to it."""
        _marker(file).write_text(json.dumps(self._identity(now)))

    def _identity(self, file: Path) -> list[object]:
        stat = file.stat()
        return [self.session, stat.st_size, stat.st_mtime_ns]

    # Disk space

    def _check_limit(self) -> None:
        if self.limit is not None and self.limit < 2 * self.index.largest:
            raise SceneError(
                f"data.cache.limit_gb: {self.policy.limit_gb:g} is too small for {self.storage.where}: its largest "
                f"shard needs {self.index.largest / 1e9:.3g} GB while it is unpacked; give at least twice that"
            )

    @property
    def limit(self) -> int | None:
        """Bytes that the shards may take; None without a limit."""
        return None if self.policy.limit_gb is None else round(self.policy.limit_gb * 1e9)

    def _book(self, change: int) -> None:
        """Adds the bytes of a new shard, or subtracts those of a removed one; evicts shards above the limit."""
        if self.limit is None or not self.replaceable:
            return
        with self._lock("usage"):
            used = self._used() + change
            if used > self.limit:
                used = self._evict(int(self.limit * USED_SHARE) - change) + change
            (self.folder / ".used").write_text(str(max(0, used)))

    def _used(self) -> int:
        try:
            return int((self.folder / ".used").read_text())
        except (OSError, ValueError):  # never written, or the disk was full
            return sum(size for _, size, _ in self._evictable())

    def _evict(self, remaining: int) -> int:
        """Removes the shards verified longest ago until `remaining` bytes are left; open ones stay readable."""
        files = sorted(self._evictable())
        used = sum(size for _, size, _ in files)
        for _, size, file in files:
            if used <= remaining:
                break
            file.unlink(missing_ok=True)
            _marker(file).unlink(missing_ok=True)
            used -= size
        return used

    def _evictable(self) -> Iterator[tuple[int, int, Path]]:
        """Yields the time of verification, the size and the file of every shard that can be fetched again."""
        for marker in self.folder.rglob("*.verified"):
            file = marker.with_suffix("")
            with contextlib.suppress(OSError):
                yield marker.stat().st_mtime_ns, file.stat().st_size, file

    @contextlib.contextmanager
    def _on_disk(self) -> Iterator[None]:
        """Raises errors of the local disk as `ShardError` with the remedy."""
        try:
            yield
        except OSError as error:
            remedy = (
                "lower data.cache.limit_gb or give a larger disk"
                if error.errno in FULL
                else "give the stream a cache folder that can be written"
            )
            raise ShardError(f"{self.folder}: {error}: {remedy}") from error

    @contextlib.contextmanager
    def _lock(self, name: str) -> Iterator[None]:
        with (self.folder / ".locks" / name).open("w") as lock:
            fcntl.flock(lock.fileno(), fcntl.LOCK_EX)
            yield


def _marker(file: Path) -> Path:
    return file.with_name(f"{file.name}.verified")


def _intact(file: Path, expected: StoredFile) -> bool | None:
    """Returns whether a file has the size and the hash of the index; None without a file."""
    try:
        with file.open("rb", buffering=0) as opened:
            if os.fstat(opened.fileno()).st_size != expected.size:
                return False
            return expected.digest is None or _hash_of(opened, expected.digest[0]) == expected.digest[1]
    except FileNotFoundError:
        return None


def _hash_of(opened: FileIO, algorithm: str) -> str:
    """Returns the hash, read in pieces: a copy of a whole shard costs more than its hash."""
    digest = getattr(xxhash, algorithm, None) or functools.partial(hashlib.new, algorithm)
    return str(hashlib.file_digest(opened, digest).hexdigest())


def _unpacked(packed: Path, shard: Shard) -> bytes:
    """Returns the content of a shard; empty if it differs from the index, which the caller sees by its size."""
    assert shard.packed is not None
    if not _intact(packed, shard.packed):
        return b""
    content = packed.read_bytes()
    try:
        from streaming.base.compression import decompress  # takes seconds, and is imported where shards are unpacked

        return decompress(shard.compression, content)
    except Exception as error:  # each compression has its own; only an index without hashes lets damage come so far
        log.warning("%s: %s", packed, error)
        return b""
