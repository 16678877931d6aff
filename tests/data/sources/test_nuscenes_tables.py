"""nuScenes as downloaded: scenes agree with the official devkit, and hold nothing that is later than their moment.

The devkit's figures, `nuscenes_devkit.json`, are of the tree that `nuscenes_tree.py` writes here; `nuscenes_oracle.py`
says how they were made.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely

from framework.data.shards.writer import Summary
from framework.data.sources.nuscenes.dataset import NuScenes
from framework.data.sources.nuscenes.join import read_tables
from framework.data.sources.nuscenes.maps import drivable_areas
from framework.data.sources.nuscenes.moment import LABELS, _motion, read_moment
from framework.data.sources.nuscenes.splits import MINI_TRAIN, MINI_VAL, TEST, TRAIN, VAL, official_split, scenes_of
from framework.data.sources.recordings import RecordingShards
from framework.data.sources.tracks import track_number
from framework.data.stream.mixture import read_scenes
from framework.scene.check import check_scene
from framework.scene.drivable import drivable_surface
from framework.scene.frames import apply, invert, project, wrap_angle
from framework.scene.types import Scene, SceneError
from tests.data.sources.nuscenes_tree import SAMPLES, VERSION, token, write_tree

DEVKIT = json.loads(Path(__file__).with_name("nuscenes_devkit.json").read_text())
TOLERANCE = 1e-6


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the version."""
    return write_tree(tmp_path_factory.mktemp("nuscenes"))


@pytest.fixture
def copy(tree: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy of the version's folder that a test may damage."""
    yield Path(shutil.copytree(tree.parent, tmp_path / "copy")) / VERSION
    read_tables.cache_clear()


@pytest.fixture(scope="module", params=range(len(DEVKIT["frames"])))
def told(request: pytest.FixtureRequest) -> dict[str, Any]:
    """What the devkit tells of a frame."""
    frame: dict[str, Any] = DEVKIT["frames"][request.param]
    return frame


@pytest.fixture
def scene(told: dict[str, Any], tree: Path) -> Scene:
    rows = [row["token"] for row in json.loads((tree / "sample.json").read_text())]
    return read_moment(str(tree), rows.index(told["sample"]))


def test_scenes_are_sound_and_drives_are_logs(tree: Path) -> None:
    logs = list(NuScenes().find_logs(str(tree.parent)))
    assert [(log.name, log.split, len(log.frames)) for log in logs] == [
        ("scene-0061", "train", SAMPLES),
        ("scene-0103", "held_out", SAMPLES),
    ]
    assert logs[0].left_out["CAM_FRONT reading between key frames"] == 5 * (SAMPLES - 1)
    scenes = [NuScenes().read_scene(frame) for frame in logs[0].frames]
    assert [check_scene(scene) for scene in scenes] == [[]] * SAMPLES
    assert [scene.history is not None for scene in scenes] == [False] * 4 + [True] * (SAMPLES - 4)
    assert [scene.future is not None for scene in scenes] == [False] + [True] * 7 + [False] * 10
    assert scenes[4].provenance["log"] == "scene-0061"
    assert json.loads(scenes[4].provenance["unmapped"]) == {"vehicle.emergency.police": 1}


def test_boxes_are_the_devkits(told: dict[str, Any], scene: Scene) -> None:
    boxes = scene.boxes
    assert boxes is not None
    assert boxes.track_ids is not None
    wanted = {track_number(name): box for name, box in told["boxes"].items() if box["category"] in LABELS}
    assert sorted(boxes.track_ids.tolist()) == sorted(wanted)
    for number, label, values in zip(boxes.track_ids.tolist(), boxes.labels, boxes.values, strict=True):
        box = wanted[number]
        width, length, height = box["wlh"]
        assert label == LABELS[box["category"]]
        np.testing.assert_allclose(values[:6], [*box["centre"], length, width, height], atol=TOLERANCE)
        assert abs(wrap_angle(np.array(values[6] - box["yaw"]))) < TOLERANCE


def test_projections_are_the_devkits(told: dict[str, Any], scene: Scene, tree: Path) -> None:
    assert scene.boxes is not None
    compared = 0
    cameras = {f"CAM_{camera.name.upper()}": camera for camera in scene.cameras}
    assert cameras.keys() == told["cameras"].keys()
    for channel, facts in told["cameras"].items():
        camera = cameras[channel]
        assert camera.frames == ((tree.parent / facts["file"]).read_bytes(),)
        pixels, depths = project(scene.boxes.values[:, :3], camera.intrinsic, camera.extrinsic)
        for name, (u, v, depth) in facts["pixels"].items():
            for row in np.flatnonzero(np.asarray(scene.boxes.track_ids) == track_number(name)):
                seen = [*pixels[row], depths[row]]
                np.testing.assert_allclose(seen, [u, v, depth], rtol=TOLERANCE, atol=TOLERANCE)
                compared += 1
    assert compared >= 8


def test_points_and_returns_are_the_devkits(told: dict[str, Any], scene: Scene) -> None:
    assert scene.lidar is not None
    assert scene.radar is not None
    points = apply(scene.lidar.extrinsic, scene.lidar.points[:, :3].astype(np.float64))
    first = np.array(told["lidar"])[:, :3]
    np.testing.assert_allclose(points[: len(first)], first, atol=1e-5)  # the devkit's points are single precision
    wanted = np.array([row for channel in sorted(told["radars"]) for row in told["radars"][channel]])
    assert scene.radar.returns.shape == wanted.shape
    np.testing.assert_allclose(scene.radar.returns, wanted, atol=1e-5)


def test_motion_is_the_devkits(told: dict[str, Any], scene: Scene) -> None:
    """The states between the devkit's poses are interpolated here, too; futures are the rollout closest to them."""
    pose, now = np.array(told["pose"]), int(scene.provenance["timestamp"]) / 1000
    way = np.array(told["way"])

    def seen(times: Any, track: Any) -> Any:
        places = np.stack([np.interp(times, track[:, 0], track[:, axis]) for axis in (1, 2)], axis=1)
        return apply(invert(pose), np.c_[places, np.zeros(len(places))])[:, :2]

    past, coming = now + 250_000.0 * np.arange(-6, 1), now + 250_000.0 * np.arange(1, 21)
    if scene.history is not None:
        np.testing.assert_allclose(scene.history.states[:, :2], seen(past, way), atol=TOLERANCE)
    if scene.future is not None:
        np.testing.assert_allclose(scene.future.states[:, :2], seen(coming, way), atol=0.05)
    assert scene.boxes is not None
    assert scene.surroundings is not None
    for name, rows in told["futures"].items():
        if not rows or told["boxes"][name]["category"] not in LABELS:
            continue
        (row,) = np.flatnonzero(np.asarray(scene.boxes.track_ids) == track_number(name))
        ground = np.array([*np.array(told["boxes"][name]["centre"]), 1.0])
        track = np.array([[now, *(pose @ ground)[:2]], *rows])
        agent = scene.surroundings.agents[row]
        there = coming <= track[-1, 0]
        assert np.isnan(agent[~there]).all()
        height = float((pose @ ground)[2])
        places = np.stack([np.interp(coming, track[:, 0], track[:, axis]) for axis in (1, 2)], axis=1)
        wanted = apply(invert(pose), np.c_[places, np.full(len(places), height)])[:, :2]
        np.testing.assert_allclose(agent[there, :2], wanted[there], atol=TOLERANCE)


@pytest.mark.fault("road users who come near later")
def test_who_is_hidden_at_the_moment_is_simulated_when_it_appears(copy: Path) -> None:
    rows = [row["token"] for row in json.loads((copy / "sample.json").read_text())]
    whole = read_moment(str(copy), 4)
    file = copy / "sample_annotation.json"
    annotations = json.loads(file.read_text())
    hidden = next(row for row in annotations if row["sample_token"] == rows[4] and row["prev"] and row["next"])
    file.write_text(json.dumps([row for row in annotations if row != hidden]))
    read_tables.cache_clear()
    _motion.cache_clear()
    scene = read_moment(str(copy), 4)
    assert scene.boxes is not None
    assert whole.boxes is not None
    assert len(scene.boxes) == len(whole.boxes) - 1
    assert check_scene(scene) == []
    assert scene.surroundings is not None
    assert scene.surroundings.distant is not None
    (distant,) = scene.surroundings.distant_agents  # type: ignore[misc]
    place = np.flatnonzero(~np.isin(whole.boxes.track_ids, scene.boxes.track_ids))[0]  # type: ignore[arg-type]
    assert scene.surroundings.distant.labels == (whole.boxes.labels[place],)
    assert whole.surroundings is not None
    expected, known = whole.surroundings.agents[place], np.isfinite(distant[:, 0])
    assert known.any()
    np.testing.assert_allclose(distant[known], expected[known], atol=1e-9)


def test_the_drivable_area_is_the_devkits(tree: Path) -> None:
    areas, left_out = drivable_areas(tree.parent / "maps" / "expansion" / "singapore-onenorth.json")
    assert (len(areas), left_out) == (2, {}), "cut through the hole"
    surface = drivable_surface([area[:, :2] for area in areas])
    assert surface.area == pytest.approx(300.0**2 - 20.0**2)
    for x, y, is_drivable in DEVKIT["drivable"]:
        assert shapely.contains_xy(surface, x, y) == is_drivable


def test_splits_are_the_devkits() -> None:
    named = {"train": TRAIN, "val": VAL, "test": TEST, "mini_train": MINI_TRAIN, "mini_val": MINI_VAL}
    for name, ranges in named.items():
        names = sorted(f"scene-{number:04d}" for number in scenes_of(ranges))
        assert [len(names), hashlib.sha256(",".join(names).encode()).hexdigest()] == DEVKIT["splits"][name]
    assert official_split("v1.0-trainval", "scene-0553") == "held_out"
    assert official_split("v1.0-mini", "scene-0553") == "train"
    assert official_split("v1.0-trainval", "scene-2000") is official_split("v1.0-trainval", "monday") is None


def test_velocities_are_those_of_the_past(tree: Path) -> None:
    """The objects of the tree move steadily, so that the past tells their velocities."""
    log = next(iter(NuScenes().find_logs(str(tree.parent))))
    scene = NuScenes().read_scene(log.frames[5])
    assert scene.boxes is not None
    speeds = dict(zip(scene.boxes.labels, np.hypot(*scene.boxes.values[:, 7:9].T), strict=True))
    assert speeds == pytest.approx({"car": 7.0, "truck": 0.0, "pedestrian": 1.2}, abs=1e-3)
    first = NuScenes().read_scene(log.frames[0]).boxes
    assert first is not None
    assert np.isnan(first.values[:, 7:9]).all(), "nobody has a past yet"


def _edit(folder: Path, table: str, place: int, **changes: object) -> None:
    path = folder / f"{table}.json"
    rows = json.loads(path.read_text())
    rows[place] |= changes
    path.write_text(json.dumps(rows))


def _row(folder: Path, table: str, **wanted: object) -> int:
    rows = json.loads((folder / f"{table}.json").read_text())
    return next(place for place, row in enumerate(rows) if row.items() >= wanted.items())


def _converted(folder: Path) -> Summary:
    source = RecordingShards(folder.parent, str(folder.parent / "cache"), {"nuscenes": NuScenes()}, workers=1)
    source.location()
    return Summary.read(source.folder / "manifest.json")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f, data: _edit(f, "ego_pose", _row(f, "ego_pose", token=data["ego_pose_token"]), rotation=[0, 0, 0, 0]),
         r"ego_pose.json: \w+: rotation: \[0, 0, 0, 0\] is no unit quaternion; unpack"),
        (lambda f, data: _edit(f, "ego_pose", _row(f, "ego_pose", token=data["ego_pose_token"]), token="lost"),
         "sample_data.ego_pose_token: .* is no row of ego_pose"),
    ],
)  # fmt: skip
@pytest.mark.fast_cases(1)
def test_damage_costs_its_own_frames_and_is_told_by_file_and_field(damage: Any, message: str, copy: Path) -> None:
    place = _row(copy, "sample_data", sample_token=token("scene-0061", "sample", 5), is_key_frame=True)
    damage(copy, json.loads((copy / "sample_data.json").read_text())[place])
    summary = _converted(copy)
    assert summary.records == 2 * SAMPLES - 1
    (skipped,) = summary.skipped
    assert re.search(message, skipped.reason), skipped.reason


def test_a_truncated_sweep_costs_itself(copy: Path) -> None:
    place = _row(copy, "sample_data", sample_token=token("scene-0061", "sample", 5), is_key_frame=True)
    data = json.loads((copy / "sample_data.json").read_text())[place]
    (copy.parent / data["filename"]).write_bytes(b"\0" * 48)
    summary = _converted(copy)
    assert (summary.records, summary.skipped) == (2 * SAMPLES, [])
    (told,) = (name for name in summary.dropped if "LIDAR_TOP (" in name)
    assert re.search(rf"{data['filename']}: 48 bytes do not make rows of 20: the file is truncated; fetch it", told)
    assert summary.dropped[told] == 1


def test_times_out_of_order_cost_their_drive(copy: Path) -> None:
    rows = json.loads((copy / "sample.json").read_text())
    _edit(copy, "sample", 3, timestamp=rows[2]["timestamp"] - 1)
    summary = _converted(copy)
    assert summary.records == SAMPLES
    (reason,) = [name for name in summary.dropped if "not ascending" in name]
    assert "scene-0061" in reason
    assert "sample.json: timestamp: not ascending after" in reason
    assert summary.dropped[reason] == SAMPLES


@pytest.mark.fault("sensors whose files are not there")
def test_sweeps_that_were_not_fetched_cost_themselves_and_are_counted(copy: Path) -> None:
    for file in (copy.parent / "samples" / "LIDAR_TOP").glob("*scene-0103*"):
        file.unlink()
    summary = _converted(copy)
    assert (summary.records, summary.parts["lidar"]) == (2 * SAMPLES, SAMPLES)
    told = "sensor LIDAR_TOP (no such file in samples/LIDAR_TOP; fetch the blob that holds it)"
    assert summary.dropped[told] == SAMPLES


def test_key_frames_without_a_file_of_any_sensor_are_counted(copy: Path) -> None:
    for folder in ("samples", "sweeps"):
        for file in (copy.parent / folder).glob("*/*scene-0103*"):
            file.unlink()
    summary = _converted(copy)
    assert (summary.records, summary.skipped) == (SAMPLES, [])
    assert summary.dropped["nuscenes key frame without a file of any sensor; fetch the blobs that hold them"] == SAMPLES


@pytest.mark.slow
def test_a_missing_table_is_told_and_leaves_other_versions(tree: Path, copy: Path) -> None:
    (copy / "calibrated_sensor.json").unlink()
    with pytest.raises(SceneError, match=r"calibrated_sensor.json: the table is missing; unpack the metadata archive"):
        _converted(copy)
    shutil.copytree(tree.parent, copy.parent / "whole")
    summary = _converted(copy)
    assert summary.records == 2 * SAMPLES
    assert any("calibrated_sensor.json: the table is missing" in name for name in summary.dropped)


def test_a_scene_of_two_versions_is_read_once_and_in_one_split(tree: Path, copy: Path) -> None:
    shutil.copytree(copy, copy.parent / "v1.0-trainval")
    logs = [log for log in NuScenes().find_logs(str(copy.parent)) if log.frames]
    assert [(log.name, log.frames[0][0].split("/")[-2]) for log in logs] == [
        ("scene-0061", "v1.0-trainval"), ("scene-0103", "v1.0-trainval")
    ]  # fmt: skip
    assert [log.split for log in logs] == ["train", "held_out"]


def test_the_test_set_has_no_annotations(copy: Path) -> None:
    (copy / "sample_annotation.json").write_text("[]")
    scene = read_moment(str(copy), 5)
    assert scene.boxes is scene.surroundings is scene.caption is None
    assert scene.questions == ()
    assert scene.future is not None
    assert check_scene(scene) == []


def test_the_streams_of_both_splits_have_no_log_in_common(tree: Path, tmp_path: Path) -> None:
    logs = {
        split: {
            scene.provenance["log"]
            for scene in read_scenes(RecordingShards(tree.parent, str(tmp_path), {"n": NuScenes()}, split, workers=1))
        }
        for split in ("train", "held_out")
    }
    assert logs == {"train": {"scene-0061"}, "held_out": {"scene-0103"}}
