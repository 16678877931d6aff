"""A folder of recordings as a stream: converted once, named by what it holds, clear about what it lacks."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from framework.data.shards.writer import Summary
from framework.data.sources.recordings import RecordingShards
from framework.data.stream.mixture import read_scenes
from framework.scene.types import SceneError
from tools.convert import main
from tools.shards import main as shards


def test_all_datasets_become_one_stream_once(recordings: Path, tmp_path: Path) -> None:
    source = RecordingShards(recordings, str(tmp_path), workers=1)
    kinds = [scene.kind for scene in read_scenes(source)]
    assert {kind: kinds.count(kind) for kind in kinds} == {"argoverse": 95, "forecasting": 5, "nuscenes": 1, "kitti": 1}
    summary = Summary.read(source.folder / "manifest.json")
    assert summary.skipped == []
    assert summary.unmapped["BOLLARD"] > 0
    assert summary.unmapped["DontCare"] == 4
    assert summary.dropped["argoverse frame without a past, a future and a sweep"] == 156 - 95
    assert summary.dropped["forecasting step between two frames, or without a past and a future"] == 110 - 5
    assert summary.dropped["box without a point"] > 0
    assert "left out: box without a point" in str(summary)
    written = (source.folder / "index.json").stat().st_mtime_ns
    RecordingShards(recordings, str(tmp_path)).location()
    assert (source.folder / "index.json").stat().st_mtime_ns == written


def test_a_preview_writes_nothing(recordings: Path, tmp_path: Path) -> None:
    survey = RecordingShards(recordings, str(tmp_path / "cache"), ["forecasting", "nuscenes", "kitti"]).survey(2)
    assert survey.samples == 7
    weights = [(scene.kind, weight) for weight, scene in survey.outlines]
    assert weights == [("forecasting", 2.5), ("forecasting", 2.5), ("nuscenes", 1.0), ("kitti", 1.0)]
    cameras = survey.outlines[2][1].cameras
    assert [(camera.width, camera.height, camera.frames) for camera in cameras] == [(1600, 900, ())] * 6
    assert not (tmp_path / "cache").exists()


def test_what_is_converted_names_the_folder(recordings: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(recordings / "kitti_000008", tmp_path / "kitti"))
    (one,) = {RecordingShards(copy, "cache", datasets).folder for datasets in (None, ["kitti"])}
    info = copy / "info.json"
    info.chmod(0o644)
    info.write_text(info.read_text() + "\n")
    assert RecordingShards(copy, "cache").folder != one


def test_a_folder_without_recordings_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "info.json").write_text("{}")
    with pytest.raises(SceneError, match="holds no recording of argoverse, kitti"):
        RecordingShards(tmp_path, "cache", ["argoverse", "kitti"]).location()
    with pytest.raises(SceneError, match="is no folder"):
        RecordingShards(tmp_path / "nowhere", "cache").location()


def test_an_unknown_dataset_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'waymo'.*argoverse"):
        RecordingShards("recordings", "cache", ["waymo"])


def test_damage_is_skipped_and_listed_by_file_and_field(
    recordings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = Path(shutil.copytree(recordings / "kitti_000008", tmp_path / "kitti"))
    info = json.loads((source / "info.json").read_text())
    broken = json.loads(json.dumps(info["data_list"][0]))
    del broken["lidar_points"]["lidar_path"]
    gone = json.loads(json.dumps(info["data_list"][0]))
    gone["lidar_points"]["lidar_path"] = "000009.bin"
    info["data_list"] += [broken, gone]
    (source / "info.json").chmod(0o644)
    (source / "info.json").write_text(json.dumps(info))
    out = tmp_path / "shards"
    assert main(["--source", "kitti", "--input", str(source), "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "1 records written (kitti 1), 2 skipped" in printed
    assert "info.json at 1: KeyError('lidar_path')" in printed
    assert "000009.bin" in printed
    assert shards(["verify", str(out)]) == 0


def test_the_tool_draws_what_it_wrote(recordings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "shards"
    assert main(["--source", "kitti", "--input", str(recordings), "--out", str(out)]) == 0
    assert shards(["show", str(out), "--out", str(tmp_path / "pictures")]) == 0
    assert "boxes: car 6" in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "pictures").iterdir()) == ["above.svg", "front.jpg"]


def test_the_tool_says_when_there_is_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--source", "all", "--input", str(tmp_path), "--out", str(tmp_path / "out")]) == 1
    assert "holds no recording" in capsys.readouterr().err
