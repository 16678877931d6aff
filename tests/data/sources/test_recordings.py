"""A folder of recordings as a stream: converted once, named by what it holds, clear about what it lacks."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from hydra.utils import instantiate

from framework.data.shards.writer import Summary
from framework.data.sources.base import RecordedLog
from framework.data.sources.forecasting import Forecasting
from framework.data.sources.info import read_info
from framework.data.sources.kitti.detection import Kitti
from framework.data.sources.recordings import RecordingShards, find_recordings
from framework.data.stream.mixture import read_scenes
from framework.recipe.renames import renames
from framework.scene.types import SceneError
from tests.data.sources.datasets import EVERY
from tools.convert.__main__ import main
from tools.shards import main as shards


@pytest.mark.slow
def test_all_datasets_become_one_stream_once(recordings: Path, tmp_path: Path) -> None:
    source = RecordingShards(recordings, str(tmp_path), EVERY, workers=1)
    kinds = [scene.kind for scene in read_scenes(source)]
    assert {kind: kinds.count(kind) for kind in kinds} == {"argoverse": 95, "forecasting": 5, "nuscenes": 1, "kitti": 1}
    summary = Summary.read(source.folder / "manifest.json")
    assert summary.skipped == []
    assert summary.unmapped["BOLLARD"] > 0
    assert summary.unmapped["DontCare"] == 4
    assert summary.dropped["argoverse moment with neither a past and a future nor sensors and a target"] == 156 - 95
    assert summary.dropped["forecasting step between two frames, or without a past and a future"] == 110 - 5
    assert summary.dropped["box without a point"] > 0
    assert "left out: box without a point" in str(summary)
    written = (source.folder / "index.json").stat().st_mtime_ns
    RecordingShards(recordings, str(tmp_path), EVERY).location()
    assert (source.folder / "index.json").stat().st_mtime_ns == written


def test_a_preview_writes_nothing(recordings: Path, tmp_path: Path) -> None:
    light = {name: EVERY[name] for name in ("forecasting", "nuscenes", "kitti")}
    survey = RecordingShards(recordings, str(tmp_path / "cache"), light).survey(2)
    assert survey.samples == 7
    weights = [(scene.kind, weight) for weight, scene in survey.outlines]
    assert weights == [("forecasting", 2.5), ("forecasting", 2.5), ("nuscenes", 1.0), ("kitti", 1.0)]
    cameras = survey.outlines[2][1].cameras
    assert [(camera.width, camera.height, camera.frames) for camera in cameras] == [(1600, 900, ())] * 6
    assert not (tmp_path / "cache").exists()


def test_what_is_converted_names_the_folder(recordings: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(recordings / "kitti_000008", tmp_path / "kitti"))
    (one,) = {RecordingShards(copy, "cache", datasets).folder for datasets in (EVERY, {"kitti": Kitti()})}
    info = copy / "info.json"
    info.chmod(0o644)
    info.write_text(info.read_text() + "\n")
    assert RecordingShards(copy, "cache", EVERY).folder != one


def test_a_folder_without_recordings_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "info.json").write_text("{}")
    with pytest.raises(SceneError, match="holds no recording of argoverse, kitti"):
        RecordingShards(tmp_path, "cache", {name: EVERY[name] for name in ("argoverse", "kitti")}).location()
    with pytest.raises(SceneError, match="is no folder"):
        RecordingShards(tmp_path / "nowhere", "cache", EVERY).location()


def test_a_stream_of_no_dataset_is_refused() -> None:
    with pytest.raises(ValueError, match="datasets: empty"):
        RecordingShards("recordings", "cache", {})


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
    assert "2 records written, 1 skipped\n  kitti 2\n" in printed
    assert "info.json at 1: KeyError('lidar_path')" in printed
    assert re.search(r"left out: .*lidar \(.*000009\.bin.*: 1\n", printed)
    assert shards(["verify", str(out)]) == 0


def test_the_tool_draws_what_it_wrote(recordings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "shards"
    assert main(["--source", "kitti", "--input", str(recordings), "--out", str(out)]) == 0
    assert shards(["show", str(out), "--out", str(tmp_path / "pictures")]) == 0
    assert "boxes: car 6" in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "pictures").iterdir()) == ["above.svg", "front.jpg"]


def test_the_tool_says_when_there_is_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--source", "recordings", "--input", str(tmp_path), "--out", str(tmp_path / "out")]) == 1
    assert "holds no recording" in capsys.readouterr().err


def test_a_damaged_info_file_is_told_and_leaves_the_others(recordings: Path, tmp_path: Path) -> None:
    shutil.copytree(recordings / "kitti_000008", tmp_path / "whole")
    for name, text in (("cut", '{"metainfo"'), ("empty", '{"metainfo": {"dataset": "kitti"}}')):
        (tmp_path / name).mkdir()
        (tmp_path / name / "info.json").write_text(text)
    found = find_recordings(tmp_path, {"kitti": Kitti()}, "train")
    assert len(found.items) == 1
    reasons = " ".join(found.left_out)
    assert "cut/info.json: " in reasons
    assert "is not JSON; fetch it again" in reasons
    assert "empty/info.json: data_list: no list of frames" in reasons


def test_splits_have_no_log_in_common_and_all_of_them_together(recordings: Path, tmp_path: Path) -> None:
    folders, logs = set(), {}
    for split in ("train", "held_out", "all"):
        source = RecordingShards(recordings, str(tmp_path), EVERY, split, workers=1)
        folders.add(source.folder)
        logs[split] = {(name, log.name) for name, found in source.found.logs.items() for log in found}
    assert len(folders) == 3
    assert logs["train"] & logs["held_out"] == set()
    assert logs["train"] | logs["held_out"] == logs["all"]
    assert {name for name, _ in logs["held_out"]} == {"forecasting"}


def test_a_split_that_no_log_is_in_is_a_clear_error(recordings: Path, tmp_path: Path) -> None:
    source = RecordingShards(recordings, str(tmp_path), {"kitti": Kitti()}, "held_out")
    with pytest.raises(SceneError, match=r"split: no log is in 'held_out' \(kitti 1, all in the other one\); lay more"):
        source.location()


def test_a_tenth_of_the_logs_is_held_out_whatever_others_there_are() -> None:
    logs = [RecordedLog(f"{place:06d}", ()) for place in range(7481)]
    held_out = [log.split for log in logs].count("held_out")
    assert held_out == pytest.approx(748, abs=90)
    assert [RecordedLog("n", (), official).split for official in ("train", "held_out")] == ["train", "held_out"]


def test_the_folders_train_and_val_are_official_splits(recordings: Path, tmp_path: Path) -> None:
    (log,) = (recordings / "argoverse2_forecasting").glob("*-*")
    for split in ("train", "val"):
        shutil.copytree(log, tmp_path / split / log.name)
    assert [each.split for each in Forecasting().find_logs(str(tmp_path))] == ["train", "held_out"]


@pytest.mark.slow
def test_the_tool_takes_presets_and_classes_and_tells_what_they_lack(
    recordings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--input", str(recordings), "--out", str(tmp_path / "shards")]
    assert main(["--source", "framework.data.sources.forecasting.Forecasting", "--split", "held_out", *words]) == 0
    printed = capsys.readouterr().out
    assert "forecasting: logs: 1 held_out (by hash); frames: 5; no cameras (the dataset has no sensor data)" in printed
    assert "each with boxes, future, history, surroundings" in printed
    assert main(["--source", "kiti", *words]) == 2
    assert "kiti: no preset of sources (did you mean kitti?)" in capsys.readouterr().err
    assert main(["--source", "world_train", *words]) == 2
    assert "world_train: a WorldShards, which reads no recordings" in capsys.readouterr().err
    assert main(["--source", "framework.scene.types.Scene", *words]) == 2


def test_a_sources_parts_of_an_older_run_are_the_same(recordings: Path) -> None:
    target = "framework.data.sources.recordings.RecordingShards"
    for old, names in (({}, ["argoverse", "forecasting", "nuscenes", "kitti"]), ({"families": ["kitti"]}, ["kitti"])):
        tree = {"_target_": target, "recordings": str(recordings), "cache": "cache", **old}
        found = instantiate(renames().tree(tree), _convert_="all")
        assert found.datasets == {name: EVERY[name] for name in names}
        assert found.split == "all"


def test_whatever_a_frame_raises_skips_it_alone(recordings: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(recordings / "kitti_000008", tmp_path / "kitti"))
    info = json.loads((source / "info.json").read_text())
    (whole,) = info["data_list"]
    damages = [{"images": None}, {"images": 5}, {"instances": None}, {"lidar_points": []}, {"sample_id": "8"}]
    info["data_list"] += [json.loads(json.dumps(whole)) | damage for damage in damages] + [None]
    (source / "info.json").chmod(0o644)
    (source / "info.json").write_text(json.dumps(info))
    stream = RecordingShards(source, str(tmp_path / "cache"), {"kitti": Kitti()}, workers=1)
    stream.location()
    summary = Summary.read(stream.folder / "manifest.json")
    assert summary.records == 1
    assert len(summary.skipped) == len(damages) + 1
    assert all("not laid out as kitti is; fetch it again" in each.reason for each in summary.skipped)


def test_a_frame_that_cannot_be_read_does_not_end_a_preview(recordings: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(recordings / "kitti_000008", tmp_path / "kitti"))
    info = json.loads((source / "info.json").read_text())
    info["data_list"].insert(0, json.loads(json.dumps(info["data_list"][0])))
    info["data_list"][0]["lidar_points"]["lidar_path"] = "gone.bin"
    (source / "info.json").chmod(0o644)
    (source / "info.json").write_text(json.dumps(info))
    survey = RecordingShards(source, str(tmp_path / "cache"), {"kitti": Kitti()}).survey(1)
    assert [(weight, scene.kind) for weight, scene in survey.outlines] == [(2, "kitti")]
    for file in ("000008.bin", "000008.png"):
        (source / file).unlink()
    read_info.cache_clear()
    with pytest.raises(SceneError, match=r"none of the 2 frames can be read; .*000008\.bin"):
        RecordingShards(source, str(tmp_path / "cache"), {"kitti": Kitti()}).survey(1)


def test_a_folder_that_cannot_be_listed_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(dataset: Kitti, folder: str) -> list[RecordedLog]:
        raise PermissionError(13, "Permission denied", folder)

    monkeypatch.setattr(Kitti, "find_logs", refused)
    assert main(["--source", "kitti", "--input", str(tmp_path), "--out", str(tmp_path / "out")]) == 1
    assert capsys.readouterr().err == f"[Errno 13] Permission denied: '{tmp_path}'\n"
