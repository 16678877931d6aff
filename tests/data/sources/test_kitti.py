"""KITTI frames: projected boxes match the label's own boxes in the image, and hold the sweep's points."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import shapely

from framework.data.sources.kitti import find_frames, read_scene
from framework.scene.check import check_scene
from framework.scene.frames import apply, box_corners, points_in_box
from framework.scene.picture import EDGES, visible_segments
from framework.scene.types import Scene


@pytest.fixture(scope="module")
def scene(recordings: Path) -> Scene:
    (item,) = find_frames(recordings)
    return read_scene(item)


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
