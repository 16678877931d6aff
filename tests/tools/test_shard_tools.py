"""Merging folders of shards, counting what is in them, verifying in parallel and showing several records."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from streaming import MDSWriter

from framework.data.shards.parts import HASHES
from framework.data.shards.record import COLUMNS, SCHEMA_VERSION, encode
from framework.data.shards.writer import Summary, Work, write_shards
from framework.data.stream.mixture import Shards, read_scenes
from framework.scene.types import Scene
from framework.scene.world.generate import generate_scene
from tests.data.scenes import full_scene, same
from tools.shard_statistics import statistics
from tools.shards import main, merge, verify

FOLDERS = {"north": 5, "south": 3, "east": 4}


def _scene(item: tuple[str, int]) -> Iterator[Scene]:
    name, number = item
    yield full_scene(f"{name}-{number}", seed=number)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of shards, two records in each."""
    root = tmp_path_factory.mktemp("shards")
    for name, records in FOLDERS.items():
        work = Work([(name, number) for number in range(records)], _scene)
        write_shards(work, root / name, part_items=3, shard_bytes=1 << 14, quiet=True)
    return root


@pytest.fixture
def root(written: Path, tmp_path: Path) -> Path:
    """A copy, to be damaged."""
    return Path(shutil.copytree(written, tmp_path / "shards"))


def stored(folder: Path) -> list[Path]:
    """The shards' files, in order."""
    index = json.loads((folder / "index.json").read_text())
    return [folder / shard["zip_data"]["basename"] for shard in index["shards"]]


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def edit(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    facts = json.loads(path.read_text())
    change(facts)
    path.write_text(json.dumps(facts))


def refuse_links(source: object, target: object) -> None:
    raise OSError(18, "Invalid cross-device link")


@pytest.mark.parametrize("where", ["below", "next to", "copied", "both"])
@pytest.mark.fast_cases(1)
def test_a_merged_folder_is_the_folders_one_after_the_other(
    where: str, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = root if where == "below" else tmp_path / "merged"
    folders = [root / name for name in FOLDERS]
    if where == "both":
        folders[1] = Path(shutil.move(folders[1], tmp_path / "merged" / "own"))
    if where == "copied":
        monkeypatch.setattr(os, "link", refuse_links)
    before = [contents(folder) for folder in folders]
    expected = [scene for folder in folders for scene in read_scenes(Shards(local=folder))]
    assert main(["merge", str(out), *map(str, folders), "--workers", "2"]) == 0
    assert list(verify(out)) == []
    assert same(tuple(read_scenes(Shards(local=out))), tuple(expected))
    whole = Summary.read(out / "manifest.json")
    assert (whole.records, whole.kinds, whole.unmapped) == (12, {"made": 12}, {"SIGN": 24})
    sources = [path for folder in folders for path in stored(folder)]
    linked = [path.samefile(source) for path, source in zip(stored(out), sources, strict=True)]
    assert set(linked) == {where != "copied"}
    for folder, files in zip(folders, before, strict=True):
        assert files.items() <= contents(folder).items(), "what was merged is as it was"
    if where == "below":
        assert stored(out) == sources


def test_folders_of_one_name_and_what_lies_there_already_keep_apart(root: Path, tmp_path: Path) -> None:
    other, out = tmp_path / "other" / "north", tmp_path / "merged"
    other.parent.mkdir()
    (root / "south").rename(other)
    (out / "north").mkdir(parents=True)
    (out / "north" / "notes").write_text("mine")
    merge(out, [root / "north", other])
    assert [scene.id for scene in read_scenes(Shards(local=out))] == [
        *(f"north-{number}" for number in range(5)),
        *(f"south-{number}" for number in range(3)),
    ]
    assert [path.name for path in (out / "north").iterdir()] == ["notes"]


def _write_otherwise(folder: Path, columns: dict[str, str], compression: str, **changes: Any) -> None:
    with MDSWriter(out=str(folder), columns=columns, compression=compression, hashes=HASHES) as writer:
        record = encode(full_scene("otherwise")) | changes
        writer.write({name: record[name] for name in columns})
    (folder / "manifest.json").write_text(json.dumps(dataclasses.asdict(Summary(1, {"made": 1}, {"made": 1}))))


def _other_columns(root: Path) -> None:
    shutil.rmtree(root / "south")
    _write_otherwise(root / "south", {"id": "str", "kind": "str"}, "zstd:3")


def _other_compression(root: Path) -> None:
    shutil.rmtree(root / "south")
    _write_otherwise(root / "south", COLUMNS, "zstd:7")


def _older_records(root: Path) -> None:
    shutil.rmtree(root / "south")
    _write_otherwise(root / "south", COLUMNS, "zstd:3", schema=SCHEMA_VERSION - 1)


def _older_manifest(root: Path) -> None:
    edit(root / "south" / "manifest.json", lambda facts: facts.update(schema=SCHEMA_VERSION - 1))


def _same_scenes(root: Path) -> None:
    shutil.rmtree(root / "south")
    shutil.copytree(root / "north", root / "south")


REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "other columns": (
        _other_columns,
        r"south/index.json: shard\S+: column_names: .* arrays, facts, frames, schema; conv",
    ),
    "other compression": (
        _other_compression,
        r"south/index.json: shard\S+: compression: zstd:7 where \S+north has zstd:3",
    ),
    "older records": (_older_records, rf"south/shard\S+ record 0: schema: version {SCHEMA_VERSION - 1}, "),
    "older manifest": (_older_manifest, rf"south/manifest.json: schema: version {SCHEMA_VERSION - 1}, .*; convert"),
    "same scenes": (
        _same_scenes,
        r"south/part-00000/\S+ record 0: id: scene north-0 is also \S+north/\S+ record 0; leave",
    ),
    "no manifest": (
        lambda root: (root / "south" / "manifest.json").unlink(),
        r"south/manifest.json: .*; write or convert",
    ),
    "no manifest's facts": (
        lambda root: (root / "south" / "manifest.json").write_text("{}"),
        r"south/manifest.json: .*'skipped'",
    ),
    "no index": (lambda root: (root / "south" / "index.json").unlink(), r"south/index.json: is missing"),
    "damaged index": (
        lambda root: (root / "south" / "index.json").write_text("{"),
        r"south/index.json: .*: is damaged",
    ),
    "index that lacks a field": (
        lambda root: edit(root / "south" / "index.json", lambda facts: facts["shards"][0].pop("zip_data")),
        r"south/index.json: .*'zip_data'.*: is damaged",
    ),
    "damaged shard": (lambda root: flip(stored(root / "south")[0]), r"south/part-00000/shard\S+: .* differ"),
    "missing shard": (lambda root: stored(root / "south")[0].unlink(), r"south/part-00000/shard\S+: is missing"),
}


@pytest.mark.parametrize("why", REFUSED)
def test_what_cannot_be_one_stream_is_refused_by_name(
    why: str, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil, message = REFUSED[why]
    spoil(root)
    before = contents(root)
    assert main(["merge", str(tmp_path / "merged"), str(root / "north"), str(root / "south")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(message, line)
    assert not (tmp_path / "merged").exists()
    assert contents(root) == before


def test_a_stream_is_never_merged_over(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(root)
    assert main(["merge", str(root / "north"), str(root / "south")]) == 1
    assert "north/index.json: exists" in capsys.readouterr().err
    assert contents(root) == before


def test_processes_find_the_faults_that_one_finds(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    merge(root, [root / name for name in FOLDERS])
    first, *_, last = stored(root)
    flip(first)
    last.unlink()
    faults = list(verify(root))
    assert [fault.partition(":")[0] for fault in faults] == [str(first), str(last)]
    assert list(verify(root, workers=3)) == faults
    assert main(["verify", str(root), "--workers", "3"]) == 1
    assert capsys.readouterr().out.splitlines() == [*faults, f"{root}: 12 records, 2 faults"]


def test_several_records_are_shown_in_the_order_asked_for(
    written: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["show", str(written / "north"), "--record", "4", "0-2", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.startswith("record")] == [f"record {number}" for number in (4, 0, 1, 2, 1)]
    assert [line for line in lines if line.startswith("id:")] == [f"id: north-{number}" for number in (4, 0, 1, 2, 1)]
    assert main(["show", str(written / "north"), "--record", "0", "3-5"]) == 1
    assert "north: has no record 5; it holds 5, counted from 0" in capsys.readouterr().err


def test_pictures_of_several_records_have_folders_of_their_own(tmp_path: Path) -> None:
    def clips(number: int) -> Iterator[Scene]:
        yield generate_scene(number, "straight", camera_frames=2)

    write_shards(Work([0, 1], clips), tmp_path / "clips", quiet=True)
    assert main(["show", str(tmp_path / "clips"), "--record", "0-1", "--out", str(tmp_path / "pictures")]) == 0
    names = {camera.name for camera in generate_scene(0, "straight").cameras}
    for number in ("0", "1"):
        found = {path.name for path in (tmp_path / "pictures" / number).iterdir()}
        assert found == {"above.svg", *(f"{name}.jpg" for name in names)}
    assert statistics(tmp_path / "clips", 2)["frames"] == {"clip of 2": 2 * len(names)}


@pytest.mark.parametrize("text", ["x", "3-", "-3-5", "3,4"])
def test_what_is_no_number_or_range_is_refused(text: str, written: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["show", str(written / "north"), f"--record={text}"])
    assert "nor a range such as 10-20" in capsys.readouterr().err


def test_statistics_are_those_of_the_scenes(written: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    north = written / "north"
    scenes = [full_scene(f"north-{number}", seed=number) for number in range(5)]
    assert main(["statistics", str(north), "--out", str(tmp_path / "new" / "facts.json")]) == 0
    facts = json.loads((tmp_path / "new" / "facts.json").read_text())
    assert facts == statistics(north, 200) == statistics(north, 200, workers=2)
    assert (facts["records"], facts["sampled"], facts["shards"]) == (5, 5, len(stored(north)))
    assert facts["stored_bytes"] == sum(path.stat().st_size for path in stored(north))
    assert facts["kinds"] == facts["datasets"] == {"made": 5}
    assert set(facts["present"].values()) == {5}
    assert {"cameras", "camera front", "lidar", "radar", "perception", "boxes", "thought"} <= facts["present"].keys()
    assert facts["boxes"] == Counter(label for scene in scenes if scene.boxes for label in scene.boxes.labels)
    assert facts["questions"] == {"count": 5, "place": 5}
    assert (facts["images"], facts["frames"]) == ({"64 x 48": 10}, {"2 images": 10})
    assert facts["futures"] == {"5 s at 4 Hz": 5}
    assert facts["columns"]["frames"] == sum(
        len(frame) for s in scenes for camera in s.cameras for frame in camera.frames
    )
    assert facts["columns"]["arrays"] == sum(len(encode(scene)["arrays"]) for scene in scenes)
    measures = facts["measures"]
    speeds = np.array([scene.future.states[:, 3] for scene in scenes if scene.future])
    assert measures["future speed (m/s)"] == _figures(speeds)
    assert measures["future acceleration (m/s^2)"] == _figures(np.diff(speeds) * 4.0)
    assert measures["box speed (m/s)"]["nan"] == pytest.approx(1 / 3)
    assert (measures["LiDAR points"]["median"], measures["radar returns"]["values"]) == (40, 5)
    printed = capsys.readouterr().out
    assert printed.startswith(f"{north}: 5 records in {len(stored(north))} shards")
    assert re.search(r"boxes \(boxes\) +animal +5 +33.3%", printed)
    assert re.search(r"box speed \(m/s\) +15 .* 33.3%", printed)


def _figures(values: np.ndarray[Any, np.dtype[Any]]) -> dict[str, Any]:
    known = {"min": values.min(), "median": np.median(values), "max": values.max()}
    return {"values": values.size, **{name: pytest.approx(value) for name, value in known.items()}, "nan": 0.0}


def test_a_sample_is_as_large_as_asked_and_counts_come_from_the_whole(written: Path) -> None:
    facts = statistics(written / "north", 2)
    assert (facts["records"], facts["sampled"]) == (5, 2)
    assert facts["present"]["lidar"] == facts["measures"]["LiDAR points"]["values"] == 2
    assert facts["kinds"] == {"made": 5}


def test_what_a_scene_lacks_is_not_counted(tmp_path: Path) -> None:
    bare = Work(["bare"], lambda name: [Scene(id=name, kind="bare")])
    write_shards(bare, tmp_path / "bare", quiet=True)
    facts = statistics(tmp_path / "bare", 10)
    assert (facts["present"], facts["boxes"], facts["futures"]) == ({}, {}, {})
    assert facts["measures"]["box speed (m/s)"] == {"values": 0, "min": None, "median": None, "max": None, "nan": None}
    assert main(["statistics", str(tmp_path / "bare")]) == 0


def test_statistics_of_a_damaged_shard_name_it(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = stored(root / "north")[1]
    flip(path)
    assert main(["statistics", str(root / "north"), "--workers", "2"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{path}: ")
