"""KITTI frames: projected boxes match the label's own boxes in the image, and hold the sweep's points."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
from PIL import Image

from framework.data.sources.info import read_info
from framework.data.sources.kitti.detection import Kitti
from framework.data.sources.kitti.info import read_scene
from framework.scene.check import check_scene
from framework.scene.frames import apply, box_corners, points_in_box
from framework.scene.picture import EDGES, visible_segments
from framework.scene.types import Scene, SceneError


@pytest.fixture(scope="module")
def scene(recordings: Path) -> Scene:
    (log,) = Kitti().find_logs(str(recordings))
    return read_scene(log.frames[0])


def test_the_frame_is_sound(scene: Scene) -> None:
    assert check_scene(scene) == []
    assert scene.boxes is not None
    assert scene.boxes.labels == ("car",) * 6


def test_projected_boxes_match_the_labels_boxes_in_the_image(scene: Scene, recordings: Path) -> None:
    frame = json.loads((recordings / "kitti_000008" / "info.json").read_text())["data_list"][0]
    labelled = [instance["bbox"] for instance in frame["instances"] if instance["bbox_label_3d"] >= 0]
    (camera,), boxes = scene.cameras, scene.boxes
    assert boxes is not None
    overlaps = []
    for corners, box in zip(box_corners(boxes.values), labelled, strict=True):
        pixels = visible_segments(camera, np.array([[corners[a], corners[b]] for a, b in EDGES])).reshape(-1, 2)
        inside = np.clip(pixels, 0.0, [camera.width - 1, camera.height - 1])
        drawn, wanted = shapely.box(*inside.min(axis=0), *inside.max(axis=0)), shapely.box(*box)
        overlaps.append(drawn.intersection(wanted).area / drawn.union(wanted).area)
    assert min(overlaps) > 0.7
    assert np.mean(overlaps) > 0.85


def test_boxes_hold_the_points_that_the_annotation_counts(scene: Scene) -> None:
    assert scene.lidar is not None
    assert scene.boxes is not None
    assert scene.boxes.points is not None
    points = apply(scene.lidar.extrinsic, scene.lidar.points[:, :3].astype(np.float64))
    found = np.array([points_in_box(points, box).sum() for box in scene.boxes.values])
    np.testing.assert_allclose(found, scene.boxes.points, rtol=0.1)


def test_cars_stand_on_the_ground_ahead_of_the_rear_axle(scene: Scene) -> None:
    assert scene.boxes is not None
    bottoms = scene.boxes.values[:, 2] - scene.boxes.values[:, 5] / 2
    assert np.abs(bottoms[scene.boxes.values[:, 0] < 15]).max() < 0.3
    assert (scene.boxes.values[:, 0] > 3).all()
    assert (scene.boxes.values[:, 3] > scene.boxes.values[:, 4]).all(), "cars are longer than wide"


def _written(folder: Path, metainfo: dict[str, Any], label: int) -> Path:
    """A frame of one parked car, seen by camera 2, 12 m ahead."""
    folder.mkdir(parents=True)
    Image.fromarray(np.full((96, 320, 3), 90, np.uint8)).save(folder / "1.png")
    np.array([[12.0, 0.0, -1.0, 0.3]] * 8, dtype=np.float32).tofile(folder / "1.bin")
    lidar2cam = [[0.0, -1.0, 0.0, 0.0], [0.0, 0.0, -1.0, 0.0], [1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0]]
    cam2img = [[200.0, 0.0, 160.0, 0.0], [0.0, 200.0, 48.0, 0.0], [0.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 1.0]]
    camera = {"img_path": "1.png", "width": 320, "height": 96, "cam2img": cam2img, "lidar2cam": lidar2cam}
    car = {"bbox_label_3d": label, "bbox_3d": [0.0, 1.7, 12.0, 4.1, 1.5, 1.7, -1.57], "num_lidar_pts": 8}
    hidden = car | {"num_lidar_pts": 0}
    frame = {
        "sample_id": 1,
        "images": {"CAM2": camera, "CAM3": camera},
        "lidar_points": {"lidar_path": "1.bin", "num_pts_feats": 4},
        "instances": [car, hidden, car | {"bbox_label_3d": -1}],
    }
    (folder / "info.json").write_text(json.dumps({"metainfo": metainfo, "data_list": [frame]}))
    return folder


ALL = ("Pedestrian", "Cyclist", "Car", "Van", "Truck", "Person_sitting", "Tram", "Misc")


@pytest.mark.fault("classes that a file numbers itself")
@pytest.mark.parametrize(
    ("metainfo", "number", "label"),
    [
        ({"DATASET": "KITTI"}, 0, "pedestrian"),
        ({"DATASET": "KITTI", "categories": {"Car": 0, "Pedestrian": 1, "Cyclist": 2}}, 0, "car"),
        ({"dataset": "kitti", "categories": {name: n for n, name in enumerate(ALL)} | {"DontCare": -1}}, 2, "car"),
        ({"dataset": "KITTI", "classes": ["Truck", "Car"]}, 0, "truck"),
    ],
)
def test_labels_mean_what_the_file_says(metainfo: dict[str, Any], number: int, label: str, tmp_path: Path) -> None:
    (log,) = Kitti().find_logs(str(_written(tmp_path / "kitti", metainfo, number)))
    scene = read_scene(log.frames[0])
    assert scene.boxes is not None
    assert scene.boxes.labels == (label, label)


def test_what_is_left_out_is_counted_by_name(tmp_path: Path) -> None:
    classes = {"DATASET": "KITTI", "categories": {"Tram": 0}}
    folder = _written(tmp_path / "kitti", {"DATASET": "KITTI"}, 2)
    info = json.loads((folder / "info.json").read_text())
    (log,) = Kitti().find_logs(str(folder))
    scene = read_scene(log.frames[0])
    assert json.loads(scene.provenance["unmapped"]) == {"DontCare": 1}
    assert json.loads(scene.provenance["dropped"]) == {"sensor CAM3": 1, "box without a point": 1}
    assert scene.caption == "Around the ego: 1 car."
    (folder / "info.json").write_text(json.dumps(info | {"metainfo": classes}))
    read_info.cache_clear()
    assert json.loads(read_scene(log.frames[0]).provenance["unmapped"]) == {"DontCare": 1, "number 2": 2}


@pytest.mark.fault("sensors whose files are not there")
@pytest.mark.parametrize(("name", "keep"), [("1.bin", -1), ("1.bin", -4), ("1.bin", -100), ("1.png", -20)])
def test_a_file_that_is_cut_short_costs_itself(name: str, keep: int, tmp_path: Path) -> None:
    folder = _written(tmp_path / "kitti", {"DATASET": "KITTI"}, 2)
    (log,) = Kitti().find_logs(str(folder))
    (folder / name).write_bytes((folder / name).read_bytes()[:keep])
    scene = read_scene(log.frames[0])
    assert (scene.lidar is None, scene.cameras == ()) == (name == "1.bin", name == "1.png")
    told = " ".join(json.loads(scene.provenance["dropped"]))
    assert re.search(rf"sensor (lidar|front) \(.*{name}: .*(truncated|cut short); fetch it again\)", told)
    for file in ("1.bin", "1.png"):
        (folder / file).unlink(missing_ok=True)
    with pytest.raises(SceneError, match=r"frame 000001 has neither an image nor a sweep; .*front \(.*; lidar \("):
        read_scene(log.frames[0])
