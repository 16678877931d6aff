"""Folders of shards: resumed, never mixed, written once, verified; what is skipped is listed."""

from __future__ import annotations

import fcntl
import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from framework.data.shards import writer as module
from framework.data.shards.writer import Summary, Work, write_once, write_shards
from framework.data.stream.mixture import Shards, read_scenes
from framework.scene.types import Scene, SceneError
from tests.data.scenes import full_scene, same, scenes_of
from tools.shards import main, read, verify

WORK = Work(list(range(7)), scenes_of)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards") / "whole"
    write_shards(WORK, folder, part_items=3, quiet=True)
    return folder


@pytest.fixture
def copy(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "copy"))


def _contents(folder: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.suffix in (".json", ".zstd")
    }


def test_what_was_written_is_read_and_what_was_not_is_listed_with_its_field(written: Path) -> None:
    expected = [full_scene(f"scene-{i}-{s}", 2 * i + (s == "b")) for i in range(7) for s in "ab" if i != 5]
    expected = [scene for scene in expected if scene.id not in ("scene-1-b", "scene-3-b")]
    assert same(tuple(read_scenes(Shards(local=written))), tuple(expected))
    summary = Summary.read(written / "manifest.json")
    assert (summary.records, summary.kinds, summary.unmapped) == (10, {"made": 10}, {"SIGN": 20})
    reasons = {skipped.source: skipped.reason for skipped in summary.skipped}
    assert list(reasons) == ["scene-1-b", "scene-3-b", "5"]
    assert "future.states: NaN or infinite at steps [3]" in reasons["scene-3-b"]
    assert "its file is empty" in reasons["5"]


def test_an_interrupted_write_resumes_to_the_same_bytes(written: Path, tmp_path: Path) -> None:
    calls: list[int] = []

    def dies(item: int) -> Iterator[Scene]:
        calls.append(item)
        if item == 4:
            raise KeyboardInterrupt
        yield from scenes_of(item)

    folder = tmp_path / "resumed"
    with pytest.raises(KeyboardInterrupt):
        write_shards(Work(WORK.items, dies), folder, part_items=3, quiet=True)
    assert not (folder / "index.json").exists()
    calls.clear()

    def counts(item: int) -> Iterator[Scene]:
        calls.append(item)
        yield from scenes_of(item)

    write_shards(Work(WORK.items, counts), folder, part_items=3, quiet=True)
    assert calls == [3, 4, 5, 6], "the part that was whole is kept, the one cut short is written again"
    assert _contents(folder) == _contents(written)
    assert not list(folder.glob("*.tmp"))


def test_other_work_never_enters_a_folder(copy: Path) -> None:
    with pytest.raises(SceneError, match="other work"):
        write_shards(Work([*range(6), 8], scenes_of), copy, part_items=3, quiet=True)


def test_work_without_a_single_record_is_an_error_that_says_why(tmp_path: Path) -> None:
    with pytest.raises(SceneError, match="item 5: its file is empty"):
        write_shards(Work([5], scenes_of), tmp_path / "none", quiet=True)


def test_shards_are_written_once_and_those_who_ask_meanwhile_wait(tmp_path: Path) -> None:
    folder, calls, inside, go_on = tmp_path / "once", [], threading.Event(), threading.Event()

    def write() -> Summary:
        calls.append(1)
        inside.set()
        assert go_on.wait(20)
        return write_shards(Work([0], scenes_of), folder, quiet=True)

    askers = [threading.Thread(target=write_once, args=(folder, write)) for _ in range(3)]
    for asker in askers:
        asker.start()
    assert inside.wait(20)
    go_on.set()
    for asker in askers:
        asker.join(20)
    assert calls == [1]
    assert (folder / "index.json").is_file()


def test_waiting_ends_with_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WAIT_S", 0.3)
    with (tmp_path / "held.lock").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(SceneError, match="another process"):
            write_once(tmp_path / "held", Summary)


def test_whole_shards_verify(written: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert list(verify(written)) == []
    assert main(["verify", str(written)]) == 0
    assert "10 records, 0 faults" in capsys.readouterr().out


def test_a_flipped_bit_is_found_and_its_shard_named(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shard = next((copy / "part-00001").glob("*.zstd"))
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    (fault,) = verify(copy)
    assert fault.startswith(f"{shard}: sha1 and xxh64 differ")
    assert main(["verify", str(copy)]) == 1
    assert str(shard) in capsys.readouterr().out


def test_a_missing_and_a_short_shard_are_named(copy: Path) -> None:
    missing, short = (next((copy / part).glob("*.zstd")) for part in ("part-00000", "part-00002"))
    missing.unlink()
    short.write_bytes(short.read_bytes()[:-1])
    assert [fault.partition(":")[0] for fault in verify(copy)] == [str(missing), str(short)]


def test_a_record_of_another_version_is_named_with_its_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("framework.data.shards.record.SCHEMA_VERSION", 99)
    write_shards(Work([0], scenes_of), tmp_path / "newer", quiet=True)
    monkeypatch.undo()
    first, second = verify(tmp_path / "newer")
    assert "record 0: record scene-0-a: schema: version 99" in first
    assert "record 1: record scene-0-b: schema: version 99" in second


def test_listing_prints_the_manifest(written: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", str(written.parent)]) == 0
    printed = capsys.readouterr().out
    assert "10 records written, 3 skipped\n  made 10\n" in printed
    assert "skipped scene-1-b: future.states" in printed
    assert main(["list", str(written / "part-00000")]) == 1


def test_showing_a_record(written: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert read(written, 4).id == "scene-2-b"
    assert main(["show", str(written), "--record", "4"]) == 0
    printed = capsys.readouterr().out
    assert "boxes: animal 1, bus 1, car 1" in printed
    assert "caption: A café." in printed
    assert main(["show", str(written), "--record", "10"]) == 1
    assert "no record 10; it holds 10" in capsys.readouterr().err


def test_the_index_is_of_all_parts(written: Path) -> None:
    names = [shard["zip_data"]["basename"] for shard in json.loads((written / "index.json").read_text())["shards"]]
    assert [name.partition("/")[0] for name in names] == ["part-00000", "part-00001", "part-00002"]
