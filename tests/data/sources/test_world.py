"""Shards of the built-in world: written when asked for, found again, named by what they hold."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from framework.data.shards.statistics import outline
from framework.data.sources.world import WorldShards
from framework.data.stream.mixture import read_scenes
from framework.scene.world.generate import generate_scene
from framework.scene.world.scenarios import TRAIN_KINDS
from tests.data.scenes import same
from tools.shards import main as shards
from tools.world_shards import main


def test_the_stream_holds_the_scenes_of_its_seeds_and_is_written_once(tmp_path: Path) -> None:
    source = WorldShards(str(tmp_path), scenes=3, seed=7, workers=1)
    expected = tuple(generate_scene(7 + i, TRAIN_KINDS[i]) for i in range(3))
    assert same(tuple(read_scenes(source)), expected)
    written = (source.folder / "index.json").stat().st_mtime_ns
    again = WorldShards(str(tmp_path), scenes=3, seed=7, workers=2)
    again.location()
    assert again.folder == source.folder
    assert (again.folder / "index.json").stat().st_mtime_ns == written


def test_what_they_hold_names_the_folder(tmp_path: Path) -> None:
    kinds = list(TRAIN_KINDS[:2])
    folders = {
        WorldShards(str(tmp_path), *facts).folder
        for facts in ((3, 7), (4, 7), (3, 8), (3, 7, kinds), (3, 7, kinds[::-1]), (3, 7, "held_out"))
    }
    assert len(folders) == 6


def test_a_preview_is_the_beginning_and_writes_nothing(tmp_path: Path) -> None:
    survey = WorldShards(str(tmp_path), scenes=40, seed=7, camera_frames=2).survey(5)
    assert survey.samples == 40
    assert sum(weight for weight, _ in survey.outlines) == pytest.approx(40)
    for index, (weight, scene) in enumerate(survey.outlines):
        whole = generate_scene(7 + index, TRAIN_KINDS[index % len(TRAIN_KINDS)], camera_frames=2)
        assert weight == 40 / len(survey.outlines)
        assert same(scene, outline(whole))
    assert not list(tmp_path.iterdir())


def test_written_shards_are_surveyed_by_their_index_alone(tmp_path: Path) -> None:
    source = WorldShards(str(tmp_path), scenes=5, seed=7, workers=1)
    folder = source.location().cache
    for shard in folder.glob("part-*"):
        shutil.rmtree(shard) if shard.is_dir() else shard.unlink()
    survey = source.survey(2)
    assert survey.samples == sum(weight for weight, _ in survey.outlines) == 5
    wanted = [outline(generate_scene(7 + index, TRAIN_KINDS[index])) for index in range(5)]
    outlines = sorted((scene for _, scene in survey.outlines), key=lambda scene: int(scene.id.rpartition("-")[2]))
    for scene, whole in zip(outlines, wanted, strict=True):
        assert same(replace(scene, lidar=None, radar=None), replace(whole, lidar=None, radar=None))
        assert scene.lidar is not None
        assert whole.lidar is not None
        assert scene.lidar.points.shape == whole.lidar.points.shape


@pytest.mark.parametrize(("wrong", "complaint"), [({"kinds": "tets"}, "tets"), ({"scenes": 0}, "at least one")])
def test_arguments_that_make_no_sense_are_refused(wrong: dict[str, object], complaint: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=complaint):
        WorldShards(**({"cache": str(tmp_path), "scenes": 1, "seed": 0} | wrong))  # type: ignore[arg-type]


def test_the_tool_writes_what_verifies(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, kind = tmp_path / "world", TRAIN_KINDS[1]
    assert main(["--out", str(folder), "--scenes", "2", "--seed", "3", "--kinds", kind]) == 0
    assert f"2 records written\n  {kind} 2\n" in capsys.readouterr().out
    assert shards(["verify", str(folder)]) == 0
    assert main(["--out", str(folder), "--scenes", "2", "--seed", "4", "--kinds", kind]) == 1
    assert "other work" in capsys.readouterr().err


@pytest.mark.slow
def test_a_killed_write_resumes_to_the_same_bytes(tmp_path: Path) -> None:
    arguments = ["--scenes", "200", "--seed", "11"]
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    process = subprocess.Popen([sys.executable, "-m", "tools.world_shards", "--out", str(killed), *arguments])
    deadline = time.monotonic() + 100
    while not (killed / "part-00001" / "part.json").is_file() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.kill()
    process.wait()
    assert not (killed / "index.json").exists()
    for folder in (killed, whole):
        assert main(["--out", str(folder), *arguments]) == 0
    contents = [
        {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        for folder in (killed, whole)
    ]
    assert contents[0] == contents[1]
