"""KITTI as downloaded: poses and projections are pykitti's, boxes and pixels those of the published formulas.

pykitti's figures, `kitti_pykitti.json`, are of the raw drives that `kitti_tree.py` writes; `kitti_oracle.py` says how
they were made.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from framework.data.sources.base import RecordedDataset, RecordedLog, hashed_split
from framework.data.sources.kitti.calibration import VELODYNE
from framework.data.sources.kitti.detection import Kitti, read_drives
from framework.data.sources.kitti.info import read_scene
from framework.data.sources.kitti.raw import KittiRaw, _open
from framework.data.sources.kitti.tracking import KittiTracking
from framework.scene.check import check_scene
from framework.scene.frames import apply, invert, project
from framework.scene.types import FloatArray, Scene
from tests.data.sources.kitti_tree import (
    DATE,
    FRAMES,
    GONE,
    RECTIFICATION,
    STRAIGHT,
    TURNING,
    VELO_TO_CAMERA,
    objects_at,
    projection,
    stamps_of,
    sweep,
    write_object,
    write_raw,
    write_tracking,
)

PYKITTI = json.loads(Path(__file__).with_name("kitti_pykitti.json").read_text())["drives"]
TOLERANCE = 1e-6


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All three layouts below one folder."""
    root = tmp_path_factory.mktemp("kitti")
    write_object(root / "object")
    write_raw(root / "raw")
    write_tracking(root / "tracking")
    return root


def logs_of(dataset: RecordedDataset, folder: Path) -> dict[str, RecordedLog]:
    return {log.name: log for log in dataset.find_logs(str(folder))}


def scene_at(dataset: RecordedDataset, folder: Path, log: str, number: int) -> Scene:
    frames = logs_of(dataset, folder)[log].frames
    return dataset.read_scene(next(frame for frame in frames if frame[1] == number))


def points_of(number: int) -> FloatArray:
    """The sweep's points in the Velodyne's frame."""
    return np.frombuffer(sweep(number), "<f4").reshape(-1, 4)[:, :3].astype(np.float64)


def ego_to_world(drive: int, frame: int) -> FloatArray:
    """The ego's pose by pykitti's of the IMU."""
    told = PYKITTI[str(drive)]
    velo_to_imu = np.linalg.inv(np.array(told["imu_to_velo"]))
    return np.array(told["poses"][frame]) @ velo_to_imu @ np.linalg.inv(VELODYNE)


@pytest.mark.parametrize("drive", [STRAIGHT, TURNING])
@pytest.mark.fast_cases(1)
def test_poses_of_a_raw_drive_are_pykittis(drive: int, tree: Path) -> None:
    opened, _ = _open(tree / "raw" / DATE / f"{DATE}_drive_{drive:04d}_sync")
    np.testing.assert_allclose(opened.poses.at(opened.poses.times), PYKITTI[str(drive)]["poses"], atol=TOLERANCE)
    wanted = np.stack([ego_to_world(drive, frame) for frame in range(FRAMES)])
    np.testing.assert_allclose(opened.ego.poses[:, :3], wanted[:, :3, 3], atol=TOLERANCE)
    np.testing.assert_allclose([opened.pose(time) for time in opened.poses.times.tolist()], wanted, atol=TOLERANCE)


@pytest.mark.parametrize("frame", [20, 35])
def test_pixels_of_a_raw_drive_are_pykittis(frame: int, tree: Path) -> None:
    scene = scene_at(KittiRaw(sweep="annotated"), tree / "raw", f"{DATE}_drive_{STRAIGHT:04d}", frame)
    assert check_scene(scene) == []
    assert scene.lidar is not None
    assert [camera.name for camera in scene.cameras] == ["front_grey", "front_right_grey", "front", "front_right"]
    points = apply(scene.lidar.extrinsic, scene.lidar.points[:, :3].astype(np.float64))
    for number, camera in enumerate(scene.cameras):
        wanted = np.array(PYKITTI[str(STRAIGHT)]["pixels"][f"{number}/{frame}"])
        ahead = wanted[:, 2] > 1.0
        pixels, depth = project(points, camera.intrinsic, camera.extrinsic)
        np.testing.assert_allclose(depth, wanted[:, 2], atol=TOLERANCE)
        np.testing.assert_allclose(pixels[ahead], wanted[ahead, :2], atol=TOLERANCE)


def test_history_and_future_of_a_raw_drive_follow_pykittis_poses(tree: Path) -> None:
    frame = 20
    scene = scene_at(KittiRaw(), tree / "raw", f"{DATE}_drive_{STRAIGHT:04d}", frame)
    pose = ego_to_world(STRAIGHT, frame)
    way = np.stack([ego_to_world(STRAIGHT, k)[:3, 3] for k in range(FRAMES)])
    assert scene.history is not None
    assert scene.future is not None
    for trajectory, first in ((scene.history, -6), (scene.future, 1)):
        times = frame / 10 + np.arange(first, first + len(trajectory.states)) / 4
        places = np.stack([np.interp(times, np.arange(FRAMES) / 10, way[:, axis]) for axis in range(3)], axis=1)
        wanted = apply(invert(pose), places)[:, :2]
        np.testing.assert_allclose(trajectory.states[:, :2], wanted, atol=TOLERANCE)
        np.testing.assert_allclose(trajectory.states[:, 2:], [[0.0, 8.0]] * len(times), atol=TOLERANCE)


def test_sensors_with_stamps_of_their_own_meet_in_the_world(tree: Path) -> None:
    """Between stamps the ego moves on: what stands still comes where it is at the moment."""
    frame, stamps = 40, stamps_of(TURNING)
    scene = scene_at(KittiRaw(sweep="annotated"), tree / "raw", f"{DATE}_drive_{TURNING:04d}", frame)
    assert check_scene(scene) == []
    assert scene.lidar is not None
    assert scene.history is not None
    ages = [(stamps[f"image_{n:02d}"][frame] - stamps["image_03"][frame]) / 1e9 for n in range(4)]
    np.testing.assert_allclose([camera.times[0] for camera in scene.cameras], ages, atol=1e-12)
    opened, _ = _open(tree / "raw" / DATE / f"{DATE}_drive_{TURNING:04d}_sync")
    start, now = opened.poses.times[0], int(scene.provenance["timestamp"])
    assert now - start == stamps["image_03"][frame]
    speed = 6.0 + 0.4 * (now - start) / 1e9
    assert scene.history.states[-1] == pytest.approx([0.0, 0.0, 0.0, speed], abs=0.03)
    shift = (scene.lidar.extrinsic @ np.linalg.inv(VELODYNE))[:3, 3]
    assert shift[0] == pytest.approx(
        -speed * (stamps["image_03"][frame] - stamps["velodyne_points"][frame]) / 1e9, abs=2e-3
    )


def test_tracklets_are_boxes_with_tracks_and_past_velocities(tree: Path) -> None:
    frame = 20
    scene = scene_at(KittiRaw(), tree / "raw", f"{DATE}_drive_{STRAIGHT:04d}", frame)
    boxes = scene.boxes
    assert boxes is not None
    assert boxes.labels == ("car", "pedestrian")
    assert json.loads(scene.provenance["unmapped"]) == {"Tram": 1}
    assert boxes.points is not None
    assert (boxes.points >= [5, 2]).all()
    for row, (_, bottom, yaw, (height, width, length)) in zip(boxes.values, objects_at(frame), strict=False):
        wanted = [*(VELODYNE[:3, 3] + bottom + [0, 0, height / 2]), length, width, height, yaw]
        np.testing.assert_allclose(row[:7], wanted, atol=TOLERANCE)
    np.testing.assert_allclose(boxes.values[:, 7:], [[10.0, 0.0], [8.0, 0.0]], atol=1e-5)


def test_the_sweep_of_the_past_is_over_by_the_moment(tree: Path) -> None:
    name = f"{DATE}_drive_{TURNING:04d}"
    for frame, number in ((20, 19), (GONE, GONE - 1), (GONE + 1, None)):
        lidar = scene_at(KittiRaw(), tree / "raw", name, frame).lidar
        assert (lidar is None) == (number is None)
        if lidar is not None and number is not None:
            assert lidar.points.tobytes() == sweep(number)


def test_object_frames_project_as_published(tree: Path) -> None:
    """P2 . R0_rect . Tr_velo_to_cam . x, by hand."""
    frame = 4
    scene = scene_at(Kitti(), tree / "object", f"{frame:06d}", frame)
    assert check_scene(scene) == []
    assert scene.lidar is not None
    assert scene.history is scene.future is scene.surroundings is None
    rectified = RECTIFICATION @ np.c_[VELO_TO_CAMERA[:, :3], VELO_TO_CAMERA[:, 3]]
    for number, camera in zip((2, 3), scene.cameras, strict=True):
        points = points_of(frame)
        seen = np.c_[np.c_[points, np.ones(64)] @ rectified.T, np.ones(64)] @ projection(number, False).T
        ahead = seen[:, 2] > 1.0
        pixels, _ = project(apply(VELODYNE, points), camera.intrinsic, camera.extrinsic)
        np.testing.assert_allclose(pixels[ahead], (seen[:, :2] / seen[:, 2:])[ahead], atol=TOLERANCE)


@pytest.mark.parametrize("frame", [0, 7])
def test_labels_are_boxes_in_the_ego_frame(frame: int, tree: Path) -> None:
    """The labels are written from the Velodyne's frame, so that its places come back, but for what the camera leans."""
    scene = scene_at(Kitti(), tree / "object", f"{frame:06d}", frame)
    boxes = scene.boxes
    assert boxes is not None
    assert boxes.labels == ("car", "pedestrian")
    assert json.loads(scene.provenance["unmapped"]) == {"DontCare": 1, "Tram": 1}
    up = RECTIFICATION @ VELO_TO_CAMERA[:, :3]
    for row, (_, bottom, yaw, (height, width, length)) in zip(boxes.values, objects_at(frame), strict=False):
        lift = up.T @ np.array([0.0, -height / 2, 0.0])
        wanted = [*(VELODYNE[:3, 3] + bottom + lift), length, width, height]
        np.testing.assert_allclose(row[:6], wanted, atol=TOLERANCE)
        ahead = up.T @ np.array([math.cos(angle := _angle(yaw)), 0.0, -math.sin(angle)])
        assert row[6] == pytest.approx(math.atan2(ahead[1], ahead[0]), abs=TOLERANCE)
        assert row[6] == pytest.approx(yaw, abs=2e-4)


def _angle(yaw: float) -> float:
    """`rotation_y` of a heading in the Velodyne's frame."""
    ahead = RECTIFICATION @ VELO_TO_CAMERA[:, :3] @ np.array([math.cos(yaw), math.sin(yaw), 0.0])
    return math.atan2(-ahead[2], ahead[0])


def test_tracking_frames_have_motion_and_the_same_boxes(tree: Path) -> None:
    frame = 20
    scene = scene_at(KittiTracking(), tree / "tracking", "training-0000", frame)
    assert check_scene(scene) == []
    assert scene.boxes is not None
    assert scene.future is not None
    assert scene.provenance["timestamp"] == "unknown"
    alike = scene_at(Kitti(), _single(tree, frame), f"{frame:06d}", frame).boxes
    assert alike is not None
    np.testing.assert_allclose(scene.boxes.values[:, :7], alike.values[:, :7], atol=TOLERANCE)
    assert scene.boxes.track_ids is not None
    ids = [scene_at(KittiTracking(), tree / "tracking", name, 30).boxes for name in ("training-0000", "training-0001")]
    assert ids[0] is not None
    assert ids[1] is not None
    assert np.array_equal(ids[0].track_ids, scene.boxes.track_ids)
    assert not np.isin(ids[1].track_ids, scene.boxes.track_ids).any()


def _single(tree: Path, frame: int) -> Path:
    folder = tree / "single"
    if not folder.is_dir():
        write_object(folder, (frame,), lists=False)
    return folder


def test_splits_are_the_lists_else_the_drives_else_the_frames(tree: Path, tmp_path: Path) -> None:
    splits = {log.name: log.split for log in Kitti().find_logs(str(tree / "object")) if log.frames}
    assert [name for name, split in splits.items() if split == "held_out"] == ["000009", "000010", "000011"]
    folder = write_object(tmp_path / "mapped", lists=False)
    notes = [log for log in Kitti().find_logs(str(tmp_path)) if not log.frames]
    assert "neither ImageSets/ nor the development kit's mapping/" in str(notes[0].left_out)
    mapping = folder.parent / "mapping"
    mapping.mkdir()
    lines = [f"2011_09_26 2011_09_26_drive_{5 + k % 3:04d}_sync {k:010d}" for k in range(12)]
    (mapping / "train_mapping.txt").write_text("\n".join(lines))
    (mapping / "train_rand.txt").write_text(",".join(str(12 - k) for k in range(12)))
    read_drives.cache_clear()
    logs = logs_of(Kitti(), tmp_path)
    assert {name: [number for _, number in log.frames] for name, log in logs.items()} == {
        f"2011_09_26_drive_{5 + rest:04d}": [k for k in range(12) if (11 - k) % 3 == rest] for rest in range(3)
    }
    for name, log in logs.items():
        assert log.split == hashed_split(name), "the same as that of the raw drive"
        assert Kitti().read_scene(log.frames[0]).provenance["log"] == name


def test_what_is_for_the_tests_of_the_benchmarks(tree: Path, tmp_path: Path) -> None:
    write_tracking(tmp_path / "tracking", (0,), "testing")
    (log,) = KittiTracking().find_logs(str(tmp_path))
    assert (log.name, log.split) == ("testing-0000", "held_out")
    scene = KittiTracking().read_scene(log.frames[10])
    assert scene.boxes is None
    assert scene.future is not None
    folder = write_object(tmp_path / "object", (0, 1))
    folder.rename(folder.with_name("testing"))
    for path in (tmp_path / "object" / "testing" / "label_2").glob("*"):
        path.unlink()
    (log,) = Kitti().find_logs(str(tmp_path))
    assert log.frames == ()
    assert [count for name, count in log.left_out.items() if name.startswith("frame without a label in")] == [2]


def test_the_real_frame_is_the_same_in_both_layouts(recordings: Path, tmp_path: Path) -> None:
    info = json.loads((recordings / "kitti_000008" / "info.json").read_text())["data_list"][0]
    folder = tmp_path / "training"
    for name, file, suffix in (("image_2", "000008.png", "png"), ("velodyne", "000008.bin", "bin")):
        (folder / name).mkdir(parents=True)
        (folder / name / f"000008.{suffix}").write_bytes((recordings / "kitti_000008" / file).read_bytes())
    images = info["images"]
    values = {f"P{n}": np.array(images[f"CAM{n}"]["cam2img"])[:3] for n in range(4)}
    values |= {"R0_rect": np.array(images["R0_rect"])[:3, :3]}
    values |= {"Tr_velo_to_cam": np.array(info["lidar_points"]["Tr_velo_to_cam"])[:3]}
    text = "".join(f"{name}: {' '.join(map(repr, matrix.ravel().tolist()))}\n" for name, matrix in values.items())
    rows = []
    for instance in info["instances"]:
        name = "DontCare" if instance["bbox_label_3d"] < 0 else "Car"
        x, y, z, length, height, width, angle = instance["bbox_3d"]
        rows.append(f"{name} 0 0 0 1 1 2 2 {height} {width} {length} {x} {y} {z} {angle}")
    for name, written in (("calib", text), ("label_2", "\n".join(rows))):
        (folder / name).mkdir()
        (folder / name / "000008.txt").write_text(written)
    one = scene_at(Kitti(), tmp_path, "000008", 8)
    other = read_scene((str(recordings / "kitti_000008" / "info.json"), 0))
    assert one.boxes is not None
    assert other.boxes is not None
    assert one.boxes.points is not None
    assert other.boxes.points is not None
    np.testing.assert_allclose(one.boxes.values, other.boxes.values, atol=1e-5)  # the file's matrices are rounded
    np.testing.assert_allclose(one.boxes.points, other.boxes.points, rtol=0.1)
    np.testing.assert_allclose(one.cameras[0].extrinsic, other.cameras[0].extrinsic, atol=1e-5)
    both = tmp_path / "both"
    both.mkdir()
    (both / "object").symlink_to(tmp_path / "training")
    (both / "info").symlink_to(recordings / "kitti_000008")
    assert sum(len(log.frames) for log in Kitti().find_logs(str(both))) == 1
