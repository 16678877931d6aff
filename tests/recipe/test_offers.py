"""Tasks and sensors that no source of a recipe can serve are found by the check, without a look at data."""

from __future__ import annotations

from pathlib import Path

import pytest

from framework.recipe.check import check
from framework.recipe.offers import lacks_of
from framework.recipe.problem import Problem

SOURCE = "stage.data.recordings.source"


@pytest.fixture(autouse=True)
def recordings_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty folder: the check reads nothing of it."""
    monkeypatch.setenv("RECORDINGS", str(tmp_path))


def found(*words: str) -> list[Problem]:
    _, problems = check(["recipe=sft_drive", *words])
    return problems


def test_driving_on_single_frames_is_one_problem_with_the_reason() -> None:
    problem, sensors = found(f"{SOURCE}=${{sources.kitti}}", "stage.data.recordings.tasks.answer=null")
    assert not problem.warning
    assert problem.origin.file.endswith("recipes/sft_drive.yaml")
    assert problem.key.endswith("data.recordings.tasks.drive")
    assert "no scene of the source has what the task 'drive' needs (history: frames are single" in problem.message
    assert "leave the task out" in problem.message
    assert sensors.warning
    assert (sensors.key, "has radar, boxes, ego (the vehicle has none; " in sensors.message) == ("data.sensors", True)


def test_what_a_stream_lacks_is_what_all_its_datasets_lack() -> None:
    columns = {f"cameras.front.{part}": part for part in ("image", "intrinsic", "extrinsic")} | {"history": "past"}
    table = {"_target_": "framework.data.sources.columns.Columns", "columns": columns}
    drives = {"_target_": "framework.data.sources.forecasting.Forecasting"}
    stream = {"_target_": "framework.data.sources.recordings.RecordingShards", "datasets": {"own": table}}
    reason = "no column is named for it"
    assert lacks_of(stream)["lidar"] == lacks_of(stream)["future"] == reason
    assert not {"cameras", "history"} & lacks_of(stream).keys()
    both = lacks_of(stream | {"datasets": {"own": table, "drives": drives, "none": None}})
    assert both["lidar"] == f"{reason}; the dataset has no sensor data"
    assert "cameras" not in both
    assert lacks_of({"_target_": "framework.data.stream.mixture.Shards", "local": "shards"}) == {}


@pytest.mark.fault("answers that refer to what a scene has not")
@pytest.mark.parametrize(("codec", "missed"), [("references", True), ("tokens", False), ("short", False)])
@pytest.mark.fast_cases(1)
def test_a_codec_that_refers_to_boxes_which_no_recording_has_is_warned_of(codec: str, missed: bool) -> None:
    told = {problem.key: problem for problem in found(f"codecs/boxes={codec}")}
    key = "stage.data.recordings.tasks.detect"
    assert (key in told) == missed
    if missed:
        assert told[key].warning
        assert "what the task 'detect' needs (perception: what a perception stack found is not rec" in told[key].message
        assert "codecs/boxes=text" in told[key].message
    assert "no source of the recipe has boxes" in told["data.sensors"].message
