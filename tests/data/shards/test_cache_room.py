"""The cache's room on the disk, and the processes that share it."""

from __future__ import annotations

import errno
import logging
import multiprocessing
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from framework.data.shards.cache import CachePolicy
from framework.data.shards.storage import Folder, Patience
from framework.scene.types import Scene, SceneError
from tests.data.scenes import same
from tests.data.shards.cached import QUICK, SCENES, cached, opened, read_all, spoil, stored, write

if TYPE_CHECKING:
    from tests.data.shards.s3 import S3

pytest_plugins = ("tests.data.shards.s3",)


# Room


def limited(limit: float) -> CachePolicy:
    """A limit in bytes."""
    return CachePolicy(limit_gb=limit / 1e9, patience=QUICK)


@pytest.mark.fast_cases(1)
def test_a_limit_that_is_too_small_for_a_shard_is_named(stream: Path, tmp_path: Path) -> None:
    largest = opened(stream, tmp_path / "cache").cache.index.largest
    with pytest.raises(SceneError, match=r"data\.cache\.limit_gb: .* is too small for .*stream.*at least twice that"):
        opened(stream, tmp_path / "cache", policy=limited(2 * largest - 1))


@pytest.mark.parametrize("shards", [2, 3.5])
def test_a_cache_that_is_smaller_than_the_data_stays_below_its_limit_and_reads_right(
    shards: float, stream: Path, scenes: list[Scene], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = opened(stream, tmp_path / "cache")
    limit, used = int(shards * reader.cache.index.largest), []
    reader = opened(stream, tmp_path / "cache", policy=limited(limit))
    monkeypatch.setattr("framework.data.shards.reader.OPEN_SHARDS", 1)
    write_bytes, copy = Path.write_bytes, shutil.copyfile

    def measure() -> None:
        files = [path for path in (tmp_path / "cache").rglob("shard.*") if not path.name.endswith(".verified")]
        used.append(sum(path.stat().st_size for path in files))

    def written(path: Path, content: bytes) -> int:
        count = write_bytes(path, content)
        measure()
        return count

    def copied(source: Path, to: Path) -> Path:
        copy(source, to)
        measure()
        return to

    monkeypatch.setattr(Path, "write_bytes", written)
    monkeypatch.setattr(shutil, "copyfile", copied)
    draw = np.random.default_rng(0)
    for turn in range(2):
        for sample in draw.permutation(SCENES) if turn else range(SCENES):
            assert same(reader.scene(sample // 2, sample % 2), scenes[sample])
            measure()
    assert max(used) <= limit
    assert max(used) > 0.5 * limit, "what there is room for is kept"


def test_failed_fetches_leave_the_room_that_they_had_taken(stream: Path, tmp_path: Path) -> None:
    reader = opened(stream, tmp_path / "cache", policy=limited(1e9))
    reader.scene(0, 0)
    used = (tmp_path / "cache" / ".used").read_text()
    spoil(stored(reader, 3), "flipped bit")
    spoil(stored(reader, 4), "missing")
    for shard in (3, 4):
        with pytest.raises(SceneError):
            reader.scene(shard, 0)
    assert (tmp_path / "cache" / ".used").read_text() == used == str(reader.cache.index[0].raw.size)


def test_a_shard_that_is_evicted_while_it_is_open_can_be_read_on(
    stream: Path, scenes: list[Scene], tmp_path: Path
) -> None:
    reader = opened(stream, tmp_path / "cache")
    read_all(reader)
    for file in (tmp_path / "cache").rglob("shard.*"):
        file.unlink()
    assert same(tuple(read_all(reader)), tuple(scenes))
    assert not list((tmp_path / "cache").rglob("shard.*.mds")), "from memory that is mapped, not fetched again"


def test_shards_read_in_place_are_never_evicted(stream: Path, scenes: list[Scene]) -> None:
    before = {path: path.read_bytes() for path in stream.rglob("shard.*") if path.suffix in (".mds", ".zstd")}
    reader = opened(stream, stream, policy=limited(2 * opened(stream, stream).cache.index.largest))
    for _ in range(2):
        assert same(tuple(read_all(reader)), tuple(scenes))
    assert {path: path.read_bytes() for path in before} == before


# A full disk


class Full(Folder):
    """A folder whose copies find no room for one shard."""

    def fetch(self, name: str, to: Path) -> None:
        if "00003" in name:
            to.write_bytes(b"started")
            raise OSError(errno.ENOSPC, "No space left on device")
        super().fetch(name, to)


def test_a_full_disk_is_told_at_once_and_what_is_there_can_be_read(
    stream: Path, scenes: list[Scene], tmp_path: Path
) -> None:
    reader = opened(stream, tmp_path / "cache", policy=CachePolicy(patience=Patience(budget_s=60)))
    reader.cache.storage = Full(str(stream))
    start = time.monotonic()
    with pytest.raises(SceneError, match=r"cache: .*No space left on device.*data\.cache\.limit_gb or .* larger disk"):
        read_all(reader)
    assert time.monotonic() - start < 20
    assert same(tuple(reader.scene(shard, 0) for shard in (0, 1, 2, 4)), tuple(scenes[i] for i in (0, 2, 4, 8)))
    assert not list((tmp_path / "cache").rglob("*.arriving*"))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 kilobytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("no file system can be mounted here: it takes root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_disk_that_fills_up_is_told_and_what_is_there_can_be_read(
    scenes: list[Scene], small_disk: Path, tmp_path: Path
) -> None:
    stream = write(tmp_path / "stream", scenes * 3)
    reader = opened(stream, small_disk, policy=limited(1e9))
    with pytest.raises(SceneError, match=r"disk: .*No space left on device.*data\.cache\.limit_gb or .* larger disk"):
        read_all(reader)
    whole = sorted(path.name for path in small_disk.glob("shard.*.mds"))
    assert len(whole) > 2
    assert same(tuple(reader.scene(shard, 1) for shard in range(len(whole))), tuple(scenes[1 : 2 * len(whole) : 2]))
    with pytest.raises(SceneError, match=r"disk: .*No space left on device"):
        opened(stream, small_disk, "run.2", limited(1e9))


def test_a_disk_that_has_room_for_the_limit_is_never_full(
    scenes: list[Scene], small_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pages, markers and locks take room, too: the limit is below what the disk has."""
    monkeypatch.setattr("framework.data.shards.reader.OPEN_SHARDS", 1)
    stream = write(tmp_path / "stream", scenes)
    reader = opened(stream, small_disk, policy=limited(3 * 6000))
    for _ in range(2):
        assert same(tuple(read_all(reader)), tuple(scenes))


def test_a_folder_that_cannot_be_written_is_named(stream: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(SceneError, match=r"file/cache: .*Not a directory.*a cache folder that can be written"):
        opened(stream, tmp_path / "file" / "cache")


# Several processes


def together(count: int, work: Callable[[], object]) -> None:
    """Have that many processes begin `work` at once, and all of them succeed."""
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(count)

    def begin() -> None:
        barrier.wait(20)
        work()

    processes = [context.Process(target=begin) for _ in range(count)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0


@pytest.mark.parametrize("before", ["empty", "whole", "damaged"])
@pytest.mark.slow
def test_processes_of_a_node_fetch_every_shard_once(
    before: str, plain: Path, scenes: list[Scene], s3: S3, tmp_path: Path
) -> None:
    remote = s3.put(plain)
    if before != "empty":
        reader = opened(remote, tmp_path / "cache")
        read_all(reader)
        if before == "damaged":
            for shard in range(len(reader.cache.index)):
                spoil(cached(reader, shard), "flipped bit")
        s3.gets.clear()

    def work() -> None:
        assert same(tuple(read_all(opened(remote, tmp_path / "cache", "run.2"))), tuple(scenes))

    together(4, work)
    fetched = {key: count for key, count in s3.gets.items() if "shard." in key}
    assert set(fetched.values()) == (set() if before == "whole" else {1})
    assert len(fetched) == (0 if before == "whole" else SCENES // 2)


@pytest.mark.slow
def test_processes_of_a_node_share_a_cache_that_is_smaller_than_the_data(
    stream: Path, scenes: list[Scene], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("framework.data.shards.reader.OPEN_SHARDS", 1)
    limit = 4 * opened(stream, tmp_path / "cache").cache.index.largest

    def work() -> None:
        reader = opened(stream, tmp_path / "cache", policy=limited(limit))
        draw = np.random.default_rng(os.getpid())
        for _ in range(4):
            for sample in draw.permutation(SCENES):
                assert same(reader.scene(sample // 2, sample % 2), scenes[sample])

    together(4, work)


def test_processes_that_make_the_index_s_array_at_once_do_not_spoil_it(stream: Path, scenes: list[Scene]) -> None:
    def work() -> None:
        for _ in range(5):
            for table in stream.glob("index.*.npy"):
                table.unlink(missing_ok=True)
            assert len(opened(stream, stream).cache.index) == SCENES // 2

    together(4, work)
    assert same(tuple(read_all(opened(stream, stream))), tuple(scenes))


def test_a_process_that_is_killed_amid_a_fetch_leaves_nothing_that_others_wait_for(
    plain: Path, scenes: list[Scene], s3: S3, tmp_path: Path
) -> None:
    remote = s3.put(plain)
    reader = opened(remote, tmp_path / "cache", policy=CachePolicy(1e-3, Patience(), stall_s=60))
    s3.injure(times=1, stops_at=500)
    process = multiprocessing.get_context("fork").Process(target=reader.cache.path, args=(3,))
    process.start()
    s3.wait_for("shard.00003.mds")
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join(20)
    assert process.exitcode == -signal.SIGKILL
    start = time.monotonic()
    assert same(reader.scene(3, 0), scenes[6])
    assert time.monotonic() - start < 20
    assert not list((tmp_path / "cache").rglob("*.arriving*"))


def test_an_outage_that_outlasts_patience_is_told_with_its_remedy(
    plain: Path, s3: S3, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    reader = opened(s3.put(plain), tmp_path / "cache")
    s3.out()
    with (
        caplog.at_level(logging.WARNING),
        pytest.raises(SceneError, match=r"no answer within data\.cache\.patience \(1 s\): .*raise budget_s"),
    ):
        reader.scene(3, 0)
    assert "try 2 in" in caplog.text
    with pytest.raises(SceneError, match=r"its index\.json cannot be read"):
        opened(f"{s3.where}/stream", tmp_path / "other")
    s3.heal()
    assert reader.scene(3, 0).id == "scene-6", "an outage is not held against a shard"
