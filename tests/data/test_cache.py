"""Shards that are damaged, missing, too large or evicted: each is healed or named, and none is ever read wrong."""

from __future__ import annotations

import errno
import json
import logging
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from streaming import MDSWriter

from framework.data import cache as module
from framework.data.cache import CachePolicy, CorruptShardError, ShardCache
from framework.data.ledger import read_attempts, tally
from framework.data.mixture import Address, Mixture, OpenMixture, Part, Shards, read_scenes
from framework.data.quarantine import Refused
from framework.data.reader import ShardReader
from framework.data.record import COLUMNS, SCHEMA_VERSION, encode
from framework.data.storage import Folder, Patience
from framework.data.tasks import Answer
from framework.scene.types import Scene, SceneError
from tests.data.scenes import same
from tests.data.streams import Trial, feed, write_texts

if TYPE_CHECKING:
    from tests.data.s3 import S3

pytest_plugins = ("tests.data.s3",)

SCENES = 20
QUICK = Patience(budget_s=1.0, absent_s=0.1, first_s=0.02, most_s=0.1)
POLICY = CachePolicy(patience=QUICK)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> list[Scene]:
    folder = tmp_path_factory.mktemp("scenes") / "stream"
    write_texts(folder, "scene", SCENES)
    return list(read_scenes(Shards(local=folder)))


@pytest.fixture(params=["packed", "plain"])
def stream(request: pytest.FixtureRequest, scenes: list[Scene], tmp_path: Path) -> Path:
    """A folder of shards of two scenes each, compressed or not."""
    return write(tmp_path / "stream", scenes, "zstd" if request.param == "packed" else None)


@pytest.fixture
def plain(scenes: list[Scene], tmp_path: Path) -> Path:
    return write(tmp_path / "stream", scenes)


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


# Damage in the cache


@pytest.mark.parametrize("how", ["flipped bit", "truncated", "emptied", "missing"])
def test_damage_in_the_cache_is_found_by_the_next_session_and_fetched_again(
    how: str, stream: Path, scenes: list[Scene], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    reader = opened(stream, tmp_path / "cache")
    read_all(reader)
    spoil(cached(reader, 3), how)
    again = opened(stream, tmp_path / "cache", "run.2")
    assert same(tuple(read_all(again)), tuple(scenes))
    told = [record.getMessage() for record in caplog.records if "differs from the index" in record.getMessage()]
    assert len(told) == (how != "missing")
    assert all("it is fetched again" in line and cached(reader, 3).name in line for line in told)


@pytest.mark.parametrize("how", ["truncated", "missing"])
def test_a_change_of_size_is_found_in_the_same_session_too(how: str, stream: Path, tmp_path: Path) -> None:
    spoil(opened(stream, tmp_path / "cache").cache.path(3), how)
    again = opened(stream, tmp_path / "cache")
    assert again.cache.path(3).stat().st_size == again.cache.index[3].raw.size


def test_records_are_hashed_once_in_a_session_and_again_in_the_next(
    stream: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[int] = []
    hash_of = module.get_hash

    def counts(algorithm: str, content: bytes) -> str:
        hashed.append(len(content))
        return hash_of(algorithm, content)

    read_all(opened(stream, tmp_path / "cache"))
    monkeypatch.setattr(module, "get_hash", counts)
    read_all(opened(stream, tmp_path / "cache"))
    assert hashed == []
    again = opened(stream, tmp_path / "cache", "run.2")
    for _ in range(3):
        read_all(again)
    assert hashed == [shard.raw.size for shard in again.cache.index]


def test_damage_after_a_shard_was_opened_is_found_by_its_records(
    stream: Path, scenes: list[Scene], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    reader = opened(stream, tmp_path / "cache")
    assert same(reader.scene(3, 0), scenes[6])
    overwrite(cached(reader, 3))
    assert same(reader.scene(3, 1), scenes[7])
    assert "differs from the index" in caplog.text
    assert same(tuple(read_all(reader)), tuple(scenes))


@pytest.mark.filterwarnings("ignore:overflow encountered")  # of sizes that are none
@pytest.mark.parametrize("seed", range(8))
def test_whatever_happens_to_an_open_shard_its_records_are_read(
    seed: int, plain: Path, scenes: list[Scene], tmp_path: Path
) -> None:
    """They are fetched again, but for damage to a value that nothing but a hash can tell."""
    draw = random.Random(seed)
    reader = opened(plain, tmp_path / "cache")
    healed = 0
    for shard in range(len(reader.cache.index)):
        reader.open(shard)
        with cached(reader, shard).open("r+b") as file:
            size = file.seek(0, os.SEEK_END)
            begin = draw.randrange(size)
            file.seek(begin)
            file.write(draw.randbytes(min(draw.choice((1, 4, 300)), size - begin)))
        for place in range(int(reader.cache.index.samples[shard])):
            scene = reader.scene(shard, place)
            healed += same(scene, scenes[2 * shard + place])
    assert healed > SCENES // 2


@pytest.mark.parametrize("how", ["flipped bit", "truncated"])
def test_the_only_copy_of_a_damaged_shard_is_named_and_kept(how: str, plain: Path) -> None:
    reader = opened(plain, plain)
    spoil(cached(reader, 3), how)
    for _ in range(2):
        with pytest.raises(CorruptShardError, match=r"shard\.00003\.mds: differs from the index.*write it again"):
            reader.scene(3, 0)
    assert cached(reader, 3).is_file()


def test_the_only_copy_is_kept_when_it_goes_bad_while_it_is_open(plain: Path) -> None:
    reader = opened(plain, plain)
    reader.scene(3, 0)
    overwrite(cached(reader, 3))
    with pytest.raises(CorruptShardError, match=r"shard\.00003\.mds: differs from the index"):
        reader.scene(3, 1)
    assert cached(reader, 3).is_file()


# Damage in storage


@pytest.mark.parametrize("how", ["flipped bit", "truncated", "emptied"])
def test_damage_in_storage_is_named_with_its_remedy(how: str, stream: Path, tmp_path: Path) -> None:
    reader = opened(stream, tmp_path / "cache")
    spoil(stored(reader, 3), how)
    with pytest.raises(CorruptShardError) as raised:
        reader.scene(3, 0)
    for said in (str(stored(reader, 3)), "is wrong in storage", "write it again", "data.corrupt_shards"):
        assert said in str(raised.value)
    assert reader.scene(4, 0).id == "scene-8", "the others can be read"
    assert not list((tmp_path / "cache").rglob("*.arriving*"))


@pytest.mark.parametrize("compression", ["zstd", None])
def test_damage_is_found_without_hashes_where_it_can_be(
    compression: str | None, scenes: list[Scene], tmp_path: Path
) -> None:
    folder = write(tmp_path / "stream", scenes, compression, hashes=[])
    reader = opened(folder, tmp_path / "cache")
    file = stored(reader, 3)
    file.write_bytes(b"\xff" * (file.stat().st_size - (compression is None)))
    with pytest.raises(CorruptShardError, match="is wrong in storage"):
        reader.scene(3, 0)


def test_a_missing_shard_is_named_with_its_remedy(stream: Path, tmp_path: Path) -> None:
    reader = opened(stream, tmp_path / "cache")
    stored(reader, 3).unlink()
    with pytest.raises(SceneError, match=r"shard\.00003\.mds.*: is missing, though the index names it; write or copy"):
        reader.scene(3, 0)
    in_place = opened(stream, stream)
    with pytest.raises(SceneError, match=r"shard\.00003\.mds.*: is missing, though the index names it"):
        in_place.scene(3, 0)


def test_a_shard_that_is_corrupt_in_storage_is_not_fetched_for_each_of_its_records(
    plain: Path, s3: S3, tmp_path: Path
) -> None:
    spoil(plain / "shard.00003.mds", "flipped bit")
    reader = opened(s3.put(plain), tmp_path / "cache")
    for place in (0, 1, 0, 1):
        with pytest.raises(CorruptShardError):
            reader.scene(3, place)
    assert s3.asked("shard.00003.mds") == module.FETCHES


def test_a_bit_that_flipped_on_the_way_is_fetched_again(
    plain: Path, scenes: list[Scene], s3: S3, tmp_path: Path
) -> None:
    reader = opened(s3.put(plain), tmp_path / "cache")
    s3.injure("shard.00003.mds", times=2, flips=1000)
    assert same(tuple(read_all(reader)), tuple(scenes))
    assert {key: count for key, count in s3.gets.items() if count > 1} == {"stream/shard.00003.mds": 3}


@pytest.fixture
def trial(plain: Path, processor: Any, tmp_path: Path) -> Callable[..., Trial]:
    """One pass over a stream whose shard 3 is corrupt in storage, in steps of four samples."""
    spoil(plain / "shard.00003.mds", "flipped bit")

    def make(**changes: Any) -> Trial:
        source = Shards(remote=str(plain), cache=str(tmp_path / "cache"))
        mixture = Mixture({"only": Part(source, {"answer": 0.7, "caption": 0.3})})
        how = feed(global_batch=4, cache=POLICY, **changes)
        return Trial(mixture, how, processor, tmp_path, steps=SCENES // 4)

    return make


@pytest.mark.parametrize("workers", [0, 1])
def test_with_quarantine_the_samples_of_a_corrupt_shard_alone_are_refused(
    workers: int, trial: Callable[..., Trial], tmp_path: Path
) -> None:
    run = trial(corrupt_shards="quarantine", workers=workers)
    run.attempt()
    trained = {name for names in run.seen.values() for name in names}
    assert {f"scene-{index}" for index in range(SCENES)} - trained == {"scene-6", "scene-7"}
    attempts = read_attempts(tmp_path / "ledger")["sft"]
    (found,) = tally(attempts)
    assert (found.trained, found.refused, found.repeated, found.lost) == (SCENES - 2, 2, 0, 0)
    rows = attempts[0].rows
    assert sorted(rows["sample"][rows["refused"] == 1]) == [6, 7]
    refused = [json.loads(line) for line in (tmp_path / "refused.rank-0.jsonl").read_text().splitlines()]
    assert sorted(line["sample"] for line in refused) == ["only/3/0", "only/3/1"]
    assert all("is wrong in storage" in line["reason"] for line in refused)


def test_without_quarantine_a_corrupt_shard_stops_the_run(trial: Callable[..., Trial]) -> None:
    with pytest.raises(CorruptShardError, match=r"shard\.00003\.mds.*'quarantine'"):
        trial().attempt()


def one_stream(remote: Path, cache: Path, **policy: Any) -> OpenMixture:
    mixture = Mixture({"only": Part(Shards(remote=str(remote), cache=str(cache)), {"answer": 1.0})})
    return mixture.open({"answer": Answer()}, 0, 8, cache=POLICY, **policy)


def test_a_shard_that_goes_bad_here_and_in_storage_is_quarantined_too(plain: Path, tmp_path: Path) -> None:
    mixture = one_stream(plain, tmp_path / "cache", corrupt_shards="quarantine")
    assert not isinstance(mixture.read(Address(0, 0, 6)), Refused)
    spoil(stored(mixture.readers[0], 3), "flipped bit")
    overwrite(cached(mixture.readers[0], 3))
    assert isinstance(mixture.read(Address(0, 0, 7)), Refused)


def test_storage_that_is_gone_when_a_shard_goes_bad_is_no_fault_of_the_sample(plain: Path, tmp_path: Path) -> None:
    mixture = one_stream(plain, tmp_path / "cache")
    assert not isinstance(mixture.read(Address(0, 0, 6)), Refused)
    overwrite(cached(mixture.readers[0], 3))
    stored(mixture.readers[0], 3).unlink()
    with pytest.raises(SceneError, match="is missing"):
        mixture.read(Address(0, 0, 7))


# Indices


def reindex(folder: Path, change: Callable[[list[dict[str, Any]]], Any]) -> None:
    """Change the entries of a stream's index."""
    path = folder / "index.json"
    facts = json.loads(path.read_text())
    changed = change(facts["shards"])
    path.write_text(json.dumps(facts | ({"shards": changed} if changed is not None else {})))


def test_an_index_that_disagrees_with_its_shards_names_the_first_that_differs(stream: Path, tmp_path: Path) -> None:
    reindex(stream, lambda entries: entries[2]["raw_data"].update(bytes=entries[2]["raw_data"]["bytes"] + 1))
    reader = opened(stream, tmp_path / "cache")
    with pytest.raises(CorruptShardError, match=r"shard\.00002\.mds.*: its hash or size is wrong in storage"):
        read_all(reader)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda entries: entries[0].update(format="xsv"), "is no index of MDS shards"),
        (lambda entries: [{"format": "json", "columns": {}, "samples": 3, "version": 2}], "is no index of MDS shards"),
        (lambda entries: entries[0].pop("raw_data") and None, "is no index of MDS shards"),
        (lambda entries: entries[4].pop("column_names") and None, "is no index of MDS shards"),
        (lambda entries: [entries, entries], "is no index of MDS shards"),
        (lambda entries: [1, 2], "is no index of MDS shards"),
        (lambda entries: entries[0]["raw_data"].update(basename=7), "is no index of MDS shards"),
        (lambda entries: entries[0].update(compression="arithmetic"), "compression arithmetic is not known"),
        (lambda entries: [], "an empty stream, no shard with a sample; convert again or remove it"),
        (lambda entries: [entry | {"samples": 0} for entry in entries], "an empty stream"),
        (lambda entries: entries[0].update(column_encodings=["pkl"] * 6), "pkl.*without pickles"),
        (lambda entries: entries[5].update(column_names=list("abcdef")), "different columns"),
    ],
)
def test_an_index_that_cannot_be_used_is_named_with_its_remedy(
    change: Callable[[list[dict[str, Any]]], Any], complaint: str, plain: Path, tmp_path: Path
) -> None:
    reindex(plain, change)
    with pytest.raises(SceneError, match=rf"{plain}/index\.json: .*{complaint}"):
        opened(plain, tmp_path / "cache")


@pytest.mark.parametrize("content", ["", "{", '{"other": 1}', '{"shards": [{"samples": 2', "\udcff\udcfe"])
def test_a_file_that_is_no_index_is_named(content: str, plain: Path, tmp_path: Path) -> None:
    (plain / "index.json").write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(SceneError, match=rf"{plain}/index\.json: .*is no index of MDS shards.*write it again"):
        opened(plain, tmp_path / "cache")


def test_a_folder_without_an_index_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(SceneError, match=r"empty: no index\.json: not a folder of shards"):
        opened(tmp_path / "empty", tmp_path / "empty")
    with pytest.raises(SceneError, match=r"empty: its index\.json cannot be read"):
        opened(tmp_path / "empty", tmp_path / "cache")


@pytest.mark.parametrize("name", ["../outside.mds", "/tmp/outside.mds", "part/../../outside.mds"])
def test_an_index_cannot_have_files_written_outside_of_the_cache(name: str, plain: Path, tmp_path: Path) -> None:
    reindex(plain, lambda entries: entries[0]["raw_data"].update(basename=name))
    with pytest.raises(SceneError, match=r"outside\.mds.* outside of the stream's folder"):
        read_all(opened(plain, tmp_path / "cache"))


@pytest.mark.parametrize("how", ["flipped bit", "truncated", "emptied"])
def test_the_index_s_array_is_made_again_where_it_is_damaged(
    how: str, stream: Path, scenes: list[Scene], tmp_path: Path
) -> None:
    opened(stream, tmp_path / "cache")
    (table,) = (tmp_path / "cache").glob("index.*.npy")
    whole = table.read_bytes()
    spoil(table, how)
    assert same(tuple(read_all(opened(stream, tmp_path / "cache"))), tuple(scenes))
    assert table.read_bytes() == whole


def test_data_that_was_added_is_seen_by_the_next_session(plain: Path, scenes: list[Scene], tmp_path: Path) -> None:
    reader = opened(plain, tmp_path / "cache")
    read_all(reader)
    shutil.rmtree(plain)
    write(plain, [*scenes, *scenes[:6]])
    assert same(tuple(read_all(opened(plain, tmp_path / "cache", "run.2"))), (*scenes, *scenes[:6]))


# Records of other versions


def test_records_of_an_older_schema_are_read(scenes: list[Scene], tmp_path: Path) -> None:
    def older(record: dict[str, Any]) -> dict[str, Any]:
        cameras = [{k: v for k, v in camera.items() if k != "clip"} for camera in record["facts"]["cameras"]]
        return record | {"schema": 1, "facts": record["facts"] | {"cameras": cameras}}

    folder = write(tmp_path / "old", scenes[:4], change=older)
    assert same(tuple(read_all(opened(folder, folder))), tuple(scenes[:4]))


def test_records_of_a_newer_schema_are_refused_by_name(scenes: list[Scene], tmp_path: Path) -> None:
    folder = write(tmp_path / "new", scenes[:4], change=lambda record: record | {"schema": SCHEMA_VERSION + 1})
    with pytest.raises(SceneError, match=rf"record scene-2: schema: version {SCHEMA_VERSION + 1}, .*convert"):
        opened(folder, folder).scene(1, 0)


# Room


def limited(limit: float) -> CachePolicy:
    """A limit in bytes."""
    return CachePolicy(limit_gb=limit / 1e9, patience=QUICK)


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
    monkeypatch.setattr("framework.data.reader.OPEN_SHARDS", 1)
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
            to.write_bytes(b"begun")
            raise OSError(errno.ENOSPC, "No space left on device")
        super().fetch(name, to)


def test_a_full_disk_is_told_at_once_and_what_is_there_can_be_read(
    stream: Path, scenes: list[Scene], tmp_path: Path
) -> None:
    reader = opened(stream, tmp_path / "cache", policy=CachePolicy(patience=Patience(budget_s=60)))
    reader.cache.storage = Full(str(stream))
    begun = time.monotonic()
    with pytest.raises(SceneError, match=r"cache: .*No space left on device.*data\.cache\.limit_gb or .* larger disk"):
        read_all(reader)
    assert time.monotonic() - begun < 20
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
    monkeypatch.setattr("framework.data.reader.OPEN_SHARDS", 1)
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


def test_processes_of_a_node_share_a_cache_that_is_smaller_than_the_data(
    stream: Path, scenes: list[Scene], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("framework.data.reader.OPEN_SHARDS", 1)
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
    begun = time.monotonic()
    assert same(reader.scene(3, 0), scenes[6])
    assert time.monotonic() - begun < 20
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
