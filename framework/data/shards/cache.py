"""The node's copy of a stream's shards: fetched once for all ranks, verified when opened, evicted when room is short.

Processes agree through the file system alone: a kernel lock per shard, which ends with the process that holds it, and
a marker beside each file that says it was verified and as what. Nothing is shared in memory, so that a killed job
leaves nothing behind that the next one, or somebody else's, could trip over.

    shard.00000.mds            what records are read from
    shard.00000.mds.verified   session, size and time of change of the file when its hash was right
    .locks/                    kernel locks
    .used                      bytes that the shards here take, those on their way included
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

import xxhash
from streaming.base.compression import decompress

from framework.data.shards.index import Shard, ShardIndex, StoredFile, read_index, saved_table
from framework.data.shards.storage import FULL, Folder, Patience, Storage, storage_at
from framework.scene.types import SceneError

log = logging.getLogger(__name__)

LOCKS = 256
KEPT_SHARE = 0.9
"""Eviction makes this much of the limit the most that is used, so that it does not run at every shard. What is left
also holds what other processes are fetching, which eviction does not count.
"""
FETCHES = 3
"""How often a shard is fetched whose hash is wrong on arrival, before it is called corrupt."""


class ShardError(SceneError):
    """A shard that cannot be had: no fault of its samples."""


class CorruptShardError(ShardError):
    """A shard that storage itself holds damaged."""


@dataclass(frozen=True)
class CachePolicy:
    """How shards are cached: at most `limit_gb` gigabytes (None: all that come), with `patience` towards storage.

    A connection that delivers nothing for `stall_s` seconds counts as failed.
    """

    limit_gb: float | None = None
    patience: Patience = field(default_factory=Patience)
    stall_s: float = 20.0


class ShardCache:
    """The shards stored at `remote` (a folder or URL), readable from `folder`.

    Where `folder` is the remote folder itself, shards are read in place and only unpacked ones are ever evicted.
    `session` names the job's attempt: every file is verified once in each session on each node.
    Raises `SceneError` for an index that cannot be used and for a limit that is smaller than two shards.
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
        """The file of shard `number`, whole and verified.

        Raises `CorruptShardError` when storage holds it damaged, as it does for good in this process; `SceneError` when
        it cannot be had.
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
        """Whether shard `number` was damaged since it was verified; if so it is removed, to be fetched again.

        Raises `CorruptShardError` when there is nowhere to fetch it from.
        """
        shard = self.index[number]
        file = self.folder / shard.raw.name
        with self._on_disk(), self._lock(str(number % LOCKS)):
            intact = _intact(file, shard.raw)
            if intact is False:
                self._discard(shard, file)
            return not intact

    def _make_good(self, shard: Shard, file: Path) -> None:
        """Under the shard's lock: verify what is there, or fetch it."""
        if self._trusted(file):
            return
        intact = _intact(file, shard.raw)
        if intact:
            with contextlib.suppress(FileNotFoundError):  # evicted this moment: who opens it asks again
                self._trust(file, file)
            return
        if intact is False:
            self._discard(shard, file)
        self._fetch(shard, file)

    def _discard(self, shard: Shard, file: Path) -> None:
        """Remove a damaged file, unless it is the only copy."""
        if self.in_place and shard.packed is None:
            raise CorruptShardError(f"{file}: differs from the index (size or hash): it is damaged; write it again")
        log.warning("%s: differs from the index (size or hash); it is fetched again", file)
        file.unlink(missing_ok=True)
        _marker(file).unlink(missing_ok=True)
        self._book(-shard.raw.size)

    def _fetch(self, shard: Shard, file: Path) -> None:
        """Bring one shard here; nothing is visible under its name before it is whole and its hash is right."""
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
            self._ask(shard.raw, to)
            return
        packed = to.with_name(f"{to.name}.packed")
        try:
            self._ask(shard.packed, packed)
            to.write_bytes(_unpacked(packed, shard))
        finally:
            packed.unlink(missing_ok=True)

    def _ask(self, stored: StoredFile, to: Path) -> None:
        """Fetch a file, with patience."""
        patience, where = self.policy.patience, self.storage.where
        try:
            patience.ask(lambda: self.storage.fetch(stored.name, to), f"shard {stored.name}")
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
        """Read the stream's index, fetched anew in every session: data may have been added to it."""
        path = self.folder / "index.json"
        if not self.in_place:
            with self._lock("index"):
                arrived = path.with_name("index.json.arriving")
                try:
                    self.policy.patience.ask(
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
        """The index as an array, where it was stored beside the index: minutes saved on millions of shards."""
        if not table.is_file():
            arrived = table.with_suffix(".arriving")
            with contextlib.suppress(OSError):
                self.storage.fetch(table.name, arrived)
                arrived.replace(table)

    # What is trusted

    def _trusted(self, file: Path) -> bool:
        try:
            return json.loads(_marker(file).read_text()) == self._identity(file)
        except (OSError, ValueError):
            return False

    def _trust(self, file: Path, now: Path) -> None:
        """`file` is verified, or will be once `now` is renamed to it."""
        _marker(file).write_text(json.dumps(self._identity(now)))

    def _identity(self, file: Path) -> list[object]:
        stat = file.stat()
        return [self.session, stat.st_size, stat.st_mtime_ns]

    # Room on the disk

    def _check_limit(self) -> None:
        if self.limit is not None and self.limit < 2 * self.index.largest:
            raise SceneError(
                f"data.cache.limit_gb: {self.policy.limit_gb:g} is too small for {self.storage.where}: its largest "
                f"shard needs {self.index.largest / 1e9:.3g} GB while it is unpacked; give at least twice that"
            )

    @property
    def limit(self) -> int | None:
        """Bytes that the shards here may take."""
        return None if self.policy.limit_gb is None else round(self.policy.limit_gb * 1e9)

    def _book(self, change: int) -> None:
        """Enter the bytes of a shard that comes or, below zero, of one that goes; make room where the limit is met."""
        if self.limit is None or not self.replaceable:
            return
        with self._lock("usage"):
            used = self._used() + change
            if used > self.limit:
                used = self._evict(int(self.limit * KEPT_SHARE) - change) + change
            (self.folder / ".used").write_text(str(max(0, used)))

    def _used(self) -> int:
        try:
            return int((self.folder / ".used").read_text())
        except (OSError, ValueError):  # none was written, or the disk was full
            return sum(size for _, size, _ in self._evictable())

    def _evict(self, most: int) -> int:
        """Remove the shards that were verified longest ago until `most` bytes remain; who has one open can read on."""
        files = sorted(self._evictable())
        used = sum(size for _, size, _ in files)
        for _, size, file in files:
            if used <= most:
                break
            file.unlink(missing_ok=True)
            _marker(file).unlink(missing_ok=True)
            used -= size
        return used

    def _evictable(self) -> Iterator[tuple[int, int, Path]]:
        """When it was last verified or fetched, size and file of every shard that is here and can be had again."""
        for marker in self.folder.rglob("*.verified"):
            file = marker.with_suffix("")
            with contextlib.suppress(OSError):
                yield marker.stat().st_mtime_ns, file.stat().st_size, file

    @contextlib.contextmanager
    def _on_disk(self) -> Iterator[None]:
        """What this node's own disk refuses is told with its remedy."""
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
    """Whether a file has the size and the hash that the index gives; None where there is none."""
    try:
        with file.open("rb", buffering=0) as opened:
            if os.fstat(opened.fileno()).st_size != expected.size:
                return False
            return expected.digest is None or _hash_of(opened, expected.digest[0]) == expected.digest[1]
    except FileNotFoundError:
        return None


def _hash_of(opened: FileIO, algorithm: str) -> str:
    """Read piece by piece: a copy of a whole shard costs more than its hash."""
    digest = getattr(xxhash, algorithm, None) or functools.partial(hashlib.new, algorithm)
    return str(hashlib.file_digest(opened, digest).hexdigest())


def _unpacked(packed: Path, shard: Shard) -> bytes:
    """The content of a shard; none where it is not what the index describes, which the caller sees by its size."""
    assert shard.packed is not None
    if not _intact(packed, shard.packed):
        return b""
    content = packed.read_bytes()
    try:
        return decompress(shard.compression, content)
    except Exception as error:  # each compression has its own; only an index without hashes lets damage come so far
        log.warning("%s: %s", packed, error)
        return b""
