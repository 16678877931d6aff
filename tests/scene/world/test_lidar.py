"""LiDAR: points lie on what is there, nothing is seen through anything."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from framework.scene.frames import apply, points_in_box
from framework.scene.types import Boxes, Lidar
from framework.scene.world.lidar import GROUND_INTENSITY, INTENSITY, points_in_boxes, scan_lidar
from framework.scene.world.rig import LidarMount
from framework.scene.world.state import Road, Snapshot

EXACT = LidarMount(noise_m=0.0, intensity_noise=0.0)
NO_ROAD = Road((), (), np.zeros((0, 2)), 10.0)


def snapshot_of(*rows: tuple[str, list[float]]) -> Snapshot:
    """Boxes from class names with x, y, length, width, height, yaw, standing on the ground."""
    values = [[*row[:2], row[4] / 2, *row[2:], 0.0, 0.0] for _, row in rows]
    boxes = Boxes(np.array(values, dtype=float).reshape(-1, 9), tuple(label for label, _ in rows))
    return Snapshot("straight", 0, NO_ROAD, boxes, 5.0, 0.0)


def scan(snapshot: Snapshot, mount: LidarMount = EXACT, seed: int = 0) -> tuple[Lidar, np.ndarray]:
    lidar = scan_lidar(snapshot, np.random.default_rng(seed), mount)
    return lidar, apply(lidar.extrinsic, lidar.points[:, :3].astype(np.float64))


CAR, TRUCK = ("car", [12.0, 2.0, 4.5, 1.9, 1.6, 0.6]), ("truck", [-9.0, -3.0, 8.0, 2.5, 3.2, -1.2])


def test_points_lie_on_the_ground_or_on_a_boxs_surface() -> None:
    snapshot = snapshot_of(CAR, TRUCK)
    _, points = scan(snapshot)
    on_ground = np.abs(points[:, 2]) < 1e-4
    near_box = np.zeros(len(points), dtype=bool)
    for box in snapshot.boxes.values:
        surface = points_in_box(points, box, 1e-4) & ~points_in_box(points, box, -1e-4)
        assert surface.sum() > 10
        assert not points_in_box(points, box, -1e-4).any()
        near_box |= surface
    assert (on_ground | near_box).all()
    assert on_ground.sum() > 1000


def test_points_are_on_the_sides_that_face_the_sensor() -> None:
    snapshot = snapshot_of(("car", [12.0, 0.0, 4.5, 1.9, 1.6, 0.0]))
    _, points = scan(snapshot)
    on_box = points[points_in_box(points, snapshot.boxes.values[0], 1e-4)]
    rear_or_top = (np.abs(on_box[:, 0] - 9.75) < 1e-3) | (np.abs(on_box[:, 2] - 1.6) < 1e-3)
    assert rear_or_top.all()


def test_nothing_is_seen_behind_a_wall() -> None:
    behind = ("pedestrian", [20.0, 0.0, 0.6, 0.6, 1.75, 0.0])
    wall = ("barrier", [10.0, 0.0, 0.3, 8.0, 3.0, 0.0])
    alone, hidden = snapshot_of(behind), snapshot_of(behind, wall)
    assert points_in_boxes(scan(alone)[1], alone.boxes)[0] > 0
    counts = points_in_boxes(scan(hidden)[1], hidden.boxes)
    assert counts[0] == 0
    assert counts[1] > 50


def test_range_is_limited_and_noise_is_along_the_ray() -> None:
    mount = LidarMount(range_m=30.0, noise_m=0.05)
    noisy, _ = scan(snapshot_of(CAR), mount)
    exact, _ = scan(snapshot_of(CAR), replace(mount, noise_m=0.0, intensity_noise=0.0))
    distance, truth = (np.linalg.norm(lidar.points[:, :3].astype(np.float64), axis=1) for lidar in (noisy, exact))
    assert truth.max() <= 30.0 + 1e-4
    assert 0.045 < (distance - truth).std() < 0.055
    rays = exact.points[:, :3] / truth[:, None]
    np.testing.assert_allclose(noisy.points[:, :3] / distance[:, None], rays, atol=1e-5)


def test_intensity_tells_materials_apart() -> None:
    snapshot = snapshot_of(("traffic_cone", [6.0, 0.0, 0.4, 0.4, 0.8, 0.0]))
    lidar, points = scan(snapshot)
    on_cone = points_in_box(points, snapshot.boxes.values[0], 1e-4) & (points[:, 2] > 1e-3)
    np.testing.assert_allclose(lidar.points[on_cone, 3], INTENSITY["traffic_cone"], atol=1e-6)
    np.testing.assert_allclose(lidar.points[~on_cone, 3], GROUND_INTENSITY, atol=1e-6)


def test_a_sweep_without_boxes_is_ground_alone_and_seeded() -> None:
    first, points = scan(snapshot_of(), LidarMount(), seed=7)
    again, _ = scan(snapshot_of(), LidarMount(), seed=7)
    other, _ = scan(snapshot_of(), LidarMount(), seed=8)
    assert first.points.dtype == np.float32
    assert np.abs(points[:, 2]).max() < 0.1
    np.testing.assert_array_equal(first.points, again.points)
    assert (first.points != other.points).any()
    assert points_in_boxes(points, snapshot_of().boxes).shape == (0,)
