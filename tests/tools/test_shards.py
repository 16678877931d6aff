"""Looking into folders of shards of the built-in world: what is there, what is damaged, and one record as pictures."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from xml.etree import ElementTree

import pytest
from PIL import Image

from framework.data.shards.writer import Work, write_shards
from framework.scene.types import Scene, SceneError
from framework.scene.world.generate import generate_scene
from tools.shards import main, read, verify

KINDS = ("straight", "cut_in", "intersection")


def _scene(seed: int) -> list[Scene]:
    return [generate_scene(seed, KINDS[seed % 3])]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six scenes in three parts, each of one shard or several."""
    folder = tmp_path_factory.mktemp("shards") / "world"
    write_shards(Work(list(range(6)), _scene), folder, part_items=2, shard_bytes=1 << 14, quiet=True)
    return folder


@pytest.fixture
def copy(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "world"))


def _shards(folder: Path) -> list[Path]:
    index = json.loads((folder / "index.json").read_text())
    return [folder / shard["zip_data"]["basename"] for shard in index["shards"]]


def test_listing_tells_of_every_folder_below(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(copy, copy.parent / "deeper" / "world")
    assert main(["list", str(copy.parent)]) == 0
    printed = capsys.readouterr().out
    for folder in (copy, copy.parent / "deeper" / "world"):
        assert f"{folder}: {len(_shards(folder))} shards" in printed
    assert printed.count("6 records written\n  cut_in 2, intersection 2, straight 2\n") == 2


@pytest.mark.parametrize("verb", ["list", "verify", "show"])
def test_a_folder_without_shards_is_an_error_that_names_it(
    verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([verb, str(tmp_path)]) == 1
    assert str(tmp_path) in capsys.readouterr().err


def test_whole_shards_have_no_faults(written: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(written)]) == 0
    assert capsys.readouterr().out == f"{written}: 6 records, 0 faults\n"


@pytest.mark.parametrize("place", [0.0, 0.5, 1.0])
def test_one_flipped_byte_is_found_wherever_it_is(place: float, copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = _shards(copy)[1]
    data = bytearray(path.read_bytes())
    data[round(place * (len(data) - 1))] ^= 0xFF
    path.write_bytes(data)
    (fault,) = verify(copy)
    assert fault.startswith(f"{path}: ")
    assert "differ" in fault
    assert main(["verify", str(copy)]) == 1
    assert "1 faults" in capsys.readouterr().out


def test_missing_and_short_shards_are_each_named(copy: Path) -> None:
    missing, short = _shards(copy)[0], _shards(copy)[-1]
    missing.unlink()
    short.write_bytes(short.read_bytes()[:-1])
    first, second = verify(copy)
    assert first.startswith(f"{missing}: is missing")
    assert second.startswith(f"{short}: ")
    assert f"{short.stat().st_size} bytes where the index counts {short.stat().st_size + 1}" in second


def test_records_are_numbered_over_all_shards(written: Path) -> None:
    assert [read(written, number).id for number in range(6)] == [_scene(seed)[0].id for seed in range(6)]
    for number in (6, -1):
        with pytest.raises(SceneError, match=f"no record {number}; it holds 6"):
            read(written, number)


def test_showing_says_what_a_record_holds(written: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (scene,) = _scene(4)
    assert main(["show", str(written), "--record", "4"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == [f"id: {scene.id}", "kind: cut_in", f"command: {scene.command}"]
    assert scene.lidar is not None
    assert f"lidar: {len(scene.lidar.points)} points" in lines
    assert sum(line.startswith("question (") for line in lines) == len(scene.questions)
    assert f"thought: {scene.thought}" in lines


def test_pictures_are_the_cameras_and_the_view_from_above(written: Path, tmp_path: Path) -> None:
    scene = read(written, 2)
    assert main(["show", str(written), "--record", "2", "--out", str(tmp_path / "pictures")]) == 0
    found = {path.name for path in (tmp_path / "pictures").iterdir()}
    assert found == {"above.svg", *(f"{camera.name}.jpg" for camera in scene.cameras)}
    ElementTree.parse(tmp_path / "pictures" / "above.svg")
    for camera in scene.cameras:
        picture = Image.open(io.BytesIO((tmp_path / "pictures" / f"{camera.name}.jpg").read_bytes()))
        assert picture.size == (camera.width, camera.height)
