"""The node's copy of a stream's shards: fetched once for all ranks, verified when opened, evicted when room is short.

Processes agree through the file system alone: a kernel lock per shard, which ends with the process that holds it, and
a marker beside each file that says it was verified and as what. Nothing is shared in memory, so that a killed job
leaves nothing behind that the next one, or somebody else's, could trip over.

    shard.00000.mds            what records are read from
    shard.00000.mds.verified   session, size and time of change of the file when its hash was right
    .locks/                    kernel locks
    .used                      bytes that the shards here take
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from streaming.base.compression import decompress
from streaming.base.hashing import get_hash

from framework.data.shard_index import Shard, ShardIndex, StoredFile, read_index, saved_table
from framework.data.storage import Folder, OutOfSpaceError, Patience, Storage, storage_at
from framework.scene.types import SceneError

log = logging.getLogger(__name__)

LOCKS = 256
KEPT_SHARE = 0.9
"""Eviction makes this much of the limit the most that is used, so that it does not run at every shard."""
FETCHES = 3
"""How often a shard is fetched whose hash is wrong on arrival, before it is called corrupt."""


class CorruptShardError(SceneError):
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
        (folder / ".locks").mkdir(parents=True, exist_ok=True)
        self.index = self._read_index()
        self._check_limit()
        with self._lock("usage"):
            self._count(recount=True)

    def path(self, number: int) -> Path:
        """The file of shard `number`, whole and verified.

        Raises `CorruptShardError` when storage holds it damaged, `SceneError` when it cannot be had.
        """
        shard = self.index[number]
        file = self.folder / shard.raw.name
        if not self._trusted(file):
            with self._lock(str(number % LOCKS)):
                self._make_good(shard, file)
        return file

    def recheck(self, number: int) -> bool:
        """Whether shard `number` was damaged since it was verified; if so it is evicted."""
        shard = self.index[number]
        file = self.folder / shard.raw.name
        with self._lock(str(number % LOCKS)):
            if file.is_file() and _intact(file, shard.raw):
                return False
            log.warning("%s: was damaged while in use; it is fetched again", file)
            self._remove(file, shard)
            return True

    def _make_good(self, shard: Shard, file: Path) -> None:
        """Under the shard's lock: verify what is there, or fetch it."""
        if self._trusted(file):
            return
        if file.is_file():
            if _intact(file, shard.raw):
                self._trust(file)
                return
            if self.in_place and shard.packed is None:
                raise CorruptShardError(f"{file}: differs from the index (size or hash): it is damaged; write it again")
            log.warning("%s: differs from the index (size or hash); it is fetched again", file)
            self._remove(file, shard)
        try:
            self.policy.patience.ask(lambda: self._fetch(shard, file), f"shard {shard.stored.name}")
        except FileNotFoundError as error:
            where = f"{self.storage.where}/{shard.stored.name}"
            raise SceneError(f"{where}: is missing, though the index names it; write or copy it again") from error
        except OutOfSpaceError as error:
            raise SceneError(
                f"{self.folder}: no space left on its disk for {shard.raw.name} ({shard.raw.size} bytes): lower "
                "data.cache.limit_gb or give a larger disk"
            ) from error
        except OSError as error:
            budget = self.policy.patience.budget_s
            raise SceneError(
                f"{self.storage.where}: no answer within data.cache.patience ({budget:g} s): {error}; mend storage or "
                "its credentials, or raise budget_s"
            ) from error

    def _fetch(self, shard: Shard, file: Path) -> None:
        """Bring one shard here; nothing is visible under its name before it is whole and its hash is right."""
        file.parent.mkdir(parents=True, exist_ok=True)
        arrived = file.with_name(f"{file.name}.arriving")
        self._make_room(self._bytes_of(shard))
        try:
            for left in reversed(range(FETCHES)):
                self._store(shard, arrived)
                if _intact(arrived, shard.raw):
                    break
                if left == 0:
                    raise CorruptShardError(
                        f"{self.storage.where}/{shard.stored.name}: its hash or size is wrong in storage, {FETCHES} "
                        "times over: write it again, or let data.corrupt_shards be 'quarantine'"
                    )
            arrived.replace(file)
            self._trust(file)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise OutOfSpaceError(error.errno, str(error)) from error
            raise
        finally:
            arrived.unlink(missing_ok=True)

    def _store(self, shard: Shard, to: Path) -> None:
        if shard.packed is None:
            self.storage.fetch(shard.raw.name, to)
            return
        packed = to.with_name(f"{to.name}.packed")
        try:
            self.storage.fetch(shard.packed.name, packed)
            if _intact(packed, shard.packed):
                assert shard.compression is not None
                to.write_bytes(decompress(shard.compression, packed.read_bytes()))
            else:
                to.write_bytes(b"")  # not what the index describes: the caller sees it by its size
        finally:
            packed.unlink(missing_ok=True)

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

    def _trust(self, file: Path) -> None:
        _marker(file).write_text(json.dumps(self._identity(file)))

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
        return None if self.policy.limit_gb is None else int(self.policy.limit_gb * 1e9)

    def _bytes_of(self, shard: Shard) -> int:
        """What a shard adds to the folder: nothing where it lies there anyway."""
        return 0 if self.in_place and shard.packed is None else shard.raw.size

    def _make_room(self, wanted: int) -> None:
        if self.limit is None or wanted == 0:
            return
        with self._lock("usage"):
            used = self._count() + wanted
            if used > self.limit:
                used = self._evict(int(self.limit * KEPT_SHARE) - wanted) + wanted
            (self.folder / ".used").write_text(str(used))

    def _count(self, recount: bool = False) -> int:
        record = self.folder / ".used"
        if recount or not record.is_file():
            record.write_text(str(sum(size for _, size, _ in self._evictable())))
        return int(record.read_text() or 0)

    def _evict(self, most: int) -> int:
        """Remove the shards opened longest ago until `most` bytes remain; who has one open can read on."""
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
        """When it was last verified or fetched, size and file of every shard that can be had again."""
        for shard in self.index:
            if self._bytes_of(shard):
                file = self.folder / shard.raw.name
                with contextlib.suppress(OSError):
                    yield _marker(file).stat().st_mtime_ns, file.stat().st_size, file

    def _remove(self, file: Path, shard: Shard) -> None:
        file.unlink(missing_ok=True)
        _marker(file).unlink(missing_ok=True)
        if self.limit is not None:
            with self._lock("usage"):
                used = self._count() - self._bytes_of(shard)
                (self.folder / ".used").write_text(str(max(0, used)))

    @contextlib.contextmanager
    def _lock(self, name: str) -> Iterator[None]:
        with (self.folder / ".locks" / name).open("w") as lock:
            fcntl.flock(lock.fileno(), fcntl.LOCK_EX)
            yield


def _marker(file: Path) -> Path:
    return file.with_name(f"{file.name}.verified")


def _intact(file: Path, expected: StoredFile) -> bool:
    """Whether a file has the size and the hash that the index gives."""
    if os.path.getsize(file) != expected.size:  # noqa: PTH202
        return False
    return expected.digest is None or get_hash(expected.digest[0], file.read_bytes()) == expected.digest[1]
