"""Shards that are damaged or missing, here or in storage: each is healed or named, and none is ever read wrong."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from framework.data.render.tasks import Answer
from framework.data.shards import cache as module
from framework.data.shards.cache import CorruptShardError
from framework.data.shards.quarantine import QuarantinedSample
from framework.data.stream.ledger import read_attempts, tally
from framework.data.stream.mixture import Address, Mixture, OpenMixture, Part, Shards
from framework.scene.types import Scene, SceneError
from tests.data.scenes import same
from tests.data.shards.cached import POLICY, SCENES, cached, opened, overwrite, read_all, spoil, stored, write
from tests.data.streams import Trial, pipeline

if TYPE_CHECKING:
    from tests.data.shards.s3 import S3

pytest_plugins = ("tests.data.shards.s3",)


# Damage in the cache


@pytest.mark.guarantee(
    "A corrupt shard is found in each attempt; one that is corrupt in storage stops the run or is quarantined"
)
@pytest.mark.parametrize("how", ["flipped bit", "truncated", "emptied", "missing"])
@pytest.mark.fast_cases(3)
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
    hash_of = module._hash_of

    def counts(opened: FileIO, algorithm: str) -> str:
        hashed.append(os.fstat(opened.fileno()).st_size)
        return hash_of(opened, algorithm)

    read_all(opened(stream, tmp_path / "cache"))
    monkeypatch.setattr(module, "_hash_of", counts)
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


@pytest.mark.guarantee("Streams never end silently: an unreadable shard raises")
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


@pytest.mark.guarantee("Streams never end silently: an unreadable shard raises")
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
        how = pipeline(global_batch=4, cache=POLICY, **changes)
        return Trial(mixture, how, processor, tmp_path, steps=SCENES // 4)

    return make


@pytest.mark.guarantee(
    "A corrupt shard is found in each attempt; one that is corrupt in storage stops the run or is quarantined"
)
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
    assert (found.trained, found.quarantined, found.repeated, found.lost) == (SCENES - 2, 2, 0, 0)
    rows = attempts[0].rows
    assert sorted(rows["sample"][rows["refused"] == 1]) == [6, 7]
    refused = [json.loads(line) for line in (tmp_path / "refused.rank-0.jsonl").read_text().splitlines()]
    assert sorted(line["sample"] for line in refused) == ["only/3/0", "only/3/1"]
    assert all("is wrong in storage" in line["reason"] for line in refused)


@pytest.mark.guarantee(
    "A corrupt shard is found in each attempt; one that is corrupt in storage stops the run or is quarantined"
)
def test_without_quarantine_a_corrupt_shard_stops_the_run(trial: Callable[..., Trial]) -> None:
    with pytest.raises(CorruptShardError, match=r"shard\.00003\.mds.*'quarantine'"):
        trial().attempt()


def one_stream(remote: Path, cache: Path, **policy: Any) -> OpenMixture:
    mixture = Mixture({"only": Part(Shards(remote=str(remote), cache=str(cache)), {"answer": 1.0})})
    return mixture.open({"answer": Answer()}, 0, 8, cache=POLICY, **policy)


def test_a_shard_that_goes_bad_here_and_in_storage_is_quarantined_too(plain: Path, tmp_path: Path) -> None:
    mixture = one_stream(plain, tmp_path / "cache", corrupt_shards="quarantine")
    assert not isinstance(mixture.read(Address(0, 0, 6)), QuarantinedSample)
    spoil(stored(mixture.readers[0], 3), "flipped bit")
    overwrite(cached(mixture.readers[0], 3))
    assert isinstance(mixture.read(Address(0, 0, 7)), QuarantinedSample)


def test_storage_that_is_gone_when_a_shard_goes_bad_is_no_fault_of_the_sample(plain: Path, tmp_path: Path) -> None:
    mixture = one_stream(plain, tmp_path / "cache")
    assert not isinstance(mixture.read(Address(0, 0, 6)), QuarantinedSample)
    overwrite(cached(mixture.readers[0], 3))
    stored(mixture.readers[0], 3).unlink()
    with pytest.raises(SceneError, match="is missing"):
        mixture.read(Address(0, 0, 7))
