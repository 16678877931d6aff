"""nuScenes keyframes: boxes lie on what the LiDAR saw, cameras and LiDAR agree."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from framework.data.sources.base import Frame
from framework.data.sources.nuscenes.dataset import NuScenes
from framework.data.sources.nuscenes.info import read_scene
from framework.scene.check import check_scene
from framework.scene.frames import apply, points_in_box, project
from framework.scene.types import Scene, SceneError
from tests.data.scenes import same


@pytest.fixture(scope="module")
def scene(recordings: Path) -> Scene:
    (log,) = NuScenes().find_logs(str(recordings))
    return read_scene(log.frames[0])


def test_the_keyframe_is_sound(scene: Scene) -> None:
    assert check_scene(scene) == []
    assert len(scene.cameras) == 6
    assert scene.boxes is not None
    assert len(scene.boxes) == 68
    assert scene.provenance["timestamp"] == "1532402927647951000"
    assert json.loads(scene.provenance["unmapped"]) == {"unknown": 1}


def test_boxes_hold_the_points_that_the_annotation_counts(scene: Scene) -> None:
    assert scene.lidar is not None
    assert scene.boxes is not None
    assert scene.boxes.points is not None
    points = apply(scene.lidar.extrinsic, scene.lidar.points[:, :3].astype(np.float64))
    found = np.array([points_in_box(points, box).sum() for box in scene.boxes.values])
    assert abs(found.sum() / scene.boxes.points.sum() - 1) < 0.05
    assert np.mean(np.abs(found - scene.boxes.points) <= 0.1 * scene.boxes.points + 1) > 0.9


def test_the_ground_is_at_zero_and_the_lidar_looks_forward(scene: Scene) -> None:
    assert scene.lidar is not None
    points = apply(scene.lidar.extrinsic, scene.lidar.points[:, :3].astype(np.float64))
    near = points[(np.abs(points[:, 0]) < 12) & (np.abs(points[:, 1]) < 4) & (np.abs(points[:, 2]) < 0.3)]
    assert abs(np.median(near[:, 2])) < 0.05
    forward = scene.lidar.extrinsic[:3, :3] @ np.array([0.0, 1.0, 0.0])
    assert forward[0] > 0.999, "the sensor's y axis is the ego's x axis"
    assert scene.lidar.points[:, 3].max() <= 1.0


def test_each_camera_looks_where_its_name_says(scene: Scene) -> None:
    bearings = {"front": 0, "front_left": 55, "front_right": -55, "back": 180, "back_left": 110, "back_right": -110}
    for camera in scene.cameras:
        axis = camera.extrinsic[:3, 2]
        off = np.degrees(np.arctan2(axis[1], axis[0])) - bearings[camera.name]
        assert abs((off + 180) % 360 - 180) < 5, camera.name
        ahead = camera.extrinsic[:3, 3] + 10 * axis
        pixels, depth = project(ahead[None], camera.intrinsic, camera.extrinsic)
        np.testing.assert_allclose(pixels[0], camera.intrinsic[:2, 2], atol=1e-6)
        assert depth[0] == pytest.approx(10.0)


def test_velocities_turn_with_the_frame(scene: Scene, recordings: Path) -> None:
    frame = json.loads((recordings / "nuscenes_sample" / "info.json").read_text())["data_list"][0]
    logged = np.array([i["velocity"] for i in frame["instances"] if i["bbox_label_3d"] >= 0])
    assert scene.boxes is not None
    moving = np.linalg.norm(logged, axis=1) > 0.5
    assert moving.sum() > 5
    # The LiDAR's y is forward and its x is right: the ego's x and minus y, but for a fraction of a degree of mounting.
    np.testing.assert_allclose(scene.boxes.values[moving, 7], logged[moving, 1], atol=0.05)
    np.testing.assert_allclose(scene.boxes.values[moving, 8], -logged[moving, 0], atol=0.05)


def test_a_camera_exposed_after_the_moment_is_left_out_by_name(recordings: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(recordings / "nuscenes_sample", tmp_path / "nuscenes"))
    info = json.loads((copy / "info.json").read_text())
    (entry,) = info["data_list"]
    entry["images"]["CAM_BACK"]["timestamp"] = entry["timestamp"] + 0.02
    entry["lidar_sweeps"] = [{"lidar_points": {"lidar_path": "sweep.bin"}}]
    (copy / "info.json").unlink()
    (copy / "info.json").write_text(json.dumps(info))
    (log,) = NuScenes().find_logs(str(copy))
    scene = read_scene(log.frames[0])
    assert "back" not in [camera.name for camera in scene.cameras]
    dropped = json.loads(scene.provenance["dropped"])
    assert dropped["sensor CAM_BACK (exposed after the moment)"] == 1
    assert dropped["sensor lidar_sweeps"] == 1


def edited(recordings: Path, folder: Path, edit: Callable[[dict[str, Any], dict[str, Any]], object]) -> Frame:
    """Copies the key frame to `folder`, applies `edit` to the info file and its entry, and returns the frame."""
    copy = Path(shutil.copytree(recordings / "nuscenes_sample", folder / "nuscenes"))
    for file in copy.iterdir():
        file.chmod(0o644)
    info = json.loads((copy / "info.json").read_text())
    edit(info, info["data_list"][0])
    (copy / "info.json").write_text(json.dumps(info))
    return str(copy / "info.json"), 0


def test_a_velocity_that_is_not_given_is_unknown(scene: Scene, recordings: Path, tmp_path: Path) -> None:
    def edit(info: dict[str, Any], entry: dict[str, Any]) -> None:
        next(each for each in entry["instances"] if each["bbox_label_3d"] >= 0)["velocity"] = None

    boxes = read_scene(edited(recordings, tmp_path, edit)).boxes
    assert boxes is not None
    assert scene.boxes is not None
    assert np.isnan(boxes.values[0, 7:]).all()
    np.testing.assert_array_equal(boxes.values[1:], scene.boxes.values[1:])


@pytest.mark.fault("classes that a file numbers itself")
def test_classes_may_be_a_list(scene: Scene, recordings: Path, tmp_path: Path) -> None:
    def edit(info: dict[str, Any], entry: dict[str, Any]) -> None:
        info["metainfo"]["categories"] = list(info["metainfo"]["categories"])

    boxes = read_scene(edited(recordings, tmp_path, edit)).boxes
    assert boxes is not None
    assert scene.boxes is not None
    assert boxes.labels == scene.boxes.labels


def test_a_number_of_channels_that_is_none_is_told(recordings: Path, tmp_path: Path) -> None:
    frame = edited(recordings, tmp_path, lambda info, entry: entry["lidar_points"].update(num_pts_feats="5"))
    scene = read_scene(frame)
    assert scene.lidar is None
    assert "pcd.bin: '5' is no number of channels, which are 4 at least" in scene.provenance["dropped"]


@pytest.mark.fault("sensors whose files are not there")
@pytest.mark.parametrize("keep", [None, 0, 48])
def test_a_sweep_that_is_absent_or_cut_short_costs_itself(
    keep: int | None, scene: Scene, recordings: Path, tmp_path: Path
) -> None:
    frame = edited(recordings, tmp_path, lambda info, entry: None)
    (file,) = Path(frame[0]).parent.glob("*.pcd.bin")
    if keep is None:
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:keep])
    without = read_scene(frame)
    assert without.lidar is None
    assert same(replace(without, lidar=scene.lidar, provenance={}), replace(scene, provenance={}))
    (told,) = (name for name in json.loads(without.provenance["dropped"]) if name.startswith("sensor LIDAR_TOP ("))
    assert str(file) in told
    for image in Path(frame[0]).parent.glob("*.jpg"):
        image.unlink()
    with pytest.raises((SceneError, OSError), match=re.escape(file.name)):
        read_scene(frame)


def test_a_broken_image_costs_only_its_camera(recordings: Path, tmp_path: Path) -> None:
    frame = edited(recordings, tmp_path, lambda info, entry: None)
    (file,) = Path(frame[0]).parent.glob("*CAM_BACK__*")
    file.write_bytes(file.read_bytes()[:-100])
    scene = read_scene(frame)
    assert len(scene.cameras) == 5
    (told,) = (name for name in json.loads(scene.provenance["dropped"]) if name.startswith("sensor"))
    assert told == f"sensor CAM_BACK ({file}: is cut short; fetch it again)"
