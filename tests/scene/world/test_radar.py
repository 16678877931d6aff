"""Radar: radial velocities over ground from what is not hidden."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from framework.scene.frames import apply, points_in_box
from framework.scene.types import Boxes
from framework.scene.world.radar import CROSS_SECTION, scan_radar
from framework.scene.world.rig import RadarMount
from framework.scene.world.state import Road, Snapshot

EXACT = RadarMount(range_noise=0.0, azimuth_noise=0.0, velocity_noise=0.0, section_noise=0.0, clutter=0.0)
NO_ROAD = Road((), (), np.zeros((0, 2)), 10.0)


def snapshot_of(*rows: tuple[str, list[float]], ego_speed: float = 0.0) -> Snapshot:
    """Boxes from class names with x, y, length, width, height, yaw, vx, vy, standing on the ground."""
    values = [[*row[:2], row[4] / 2, *row[2:]] for _, row in rows]
    boxes = Boxes(np.array(values, dtype=float).reshape(-1, 9), tuple(label for label, _ in rows))
    return Snapshot("straight", 0, NO_ROAD, boxes, ego_speed, 0.0)


def returns_of(snapshot: Snapshot, mount: RadarMount = EXACT, seeds: int = 20) -> np.ndarray:
    """Returns of several sweeps, `(n, 5)`, in the sensor's frame."""
    return np.concatenate([scan_radar(snapshot, np.random.default_rng(s), mount).returns for s in range(seeds)])


@pytest.mark.parametrize("ego_speed", [0.0, 15.0])
def test_radial_velocity_is_the_projection_of_the_velocity_over_ground(ego_speed: float) -> None:
    velocity = np.array([4.0, -3.0])
    snapshot = snapshot_of(("car", [20.0, 8.0, 4.5, 1.9, 1.6, 0.7, *velocity]), ego_speed=ego_speed)
    returns = returns_of(snapshot)
    rays = returns[:, :3] / np.linalg.norm(returns[:, :3], axis=1, keepdims=True)
    np.testing.assert_allclose(returns[:, 3], rays[:, :2] @ velocity, atol=1e-4)
    assert len(returns) > 30
    np.testing.assert_allclose(returns[:, 4], CROSS_SECTION["car"], atol=1e-5)


def test_receding_is_positive_and_coming_nearer_negative() -> None:
    for speed in (5.0, -5.0):
        returns = returns_of(snapshot_of(("car", [30.0, 0.0, 4.5, 1.9, 1.6, 0.0, speed, 0.0])))
        assert (returns[:, 3] * speed > 0.95 * speed**2).all()


def test_returns_lie_on_the_surface_that_can_be_seen() -> None:
    snapshot = snapshot_of(("truck", [25.0, -4.0, 8.0, 2.5, 3.2, 0.5, 0.0, 0.0]))
    radar = scan_radar(snapshot, np.random.default_rng(0), EXACT)
    points = apply(radar.extrinsic, radar.returns[:, :3].astype(np.float64))
    assert len(points) > 0
    assert points_in_box(points, snapshot.boxes.values[0], 1e-4).all()
    assert not points_in_box(points, snapshot.boxes.values[0], -1e-4).any()


@pytest.mark.parametrize(
    "row",
    [
        [120.0, 0.0, 4.5, 1.9, 1.6, 0.0, 0.0, 0.0],
        [5.0, 40.0, 4.5, 1.9, 1.6, 0.0, 0.0, 0.0],
        [-20.0, 0.0, 4.5, 1.9, 1.6, 0.0, 0.0, 0.0],
    ],
    ids=["too far", "aside", "behind"],
)
def test_nothing_outside_range_and_field_of_view_returns(row: list[float]) -> None:
    assert len(returns_of(snapshot_of(("car", row)))) == 0


def test_nothing_returns_from_behind_a_wall() -> None:
    hidden = ("car", [30.0, 0.0, 4.5, 1.9, 1.6, 0.0, 7.0, 0.0])
    wall = ("barrier", [15.0, 0.0, 0.3, 12.0, 3.0, 0.0, 0.0, 0.0])
    assert (returns_of(snapshot_of(hidden))[:, 3] > 6.0).all()
    both = returns_of(snapshot_of(hidden, wall))
    assert len(both) > 20
    assert (both[:, 3] == 0.0).all()


@pytest.mark.slow
def test_noise_has_the_mounts_deviations() -> None:
    snapshot = snapshot_of(("barrier", [30.0, 0.0, 0.2, 0.2, 1.0, 0.0, 3.0, 0.0]))
    mount = replace(RadarMount(), clutter=0.0)
    returns = returns_of(snapshot, mount, seeds=3000).astype(np.float64)
    assert returns[:, 3].std() == pytest.approx(mount.velocity_noise, rel=0.1)
    assert np.hypot(returns[:, 0], returns[:, 1]).std() == pytest.approx(mount.range_noise, rel=0.1)
    assert np.arctan2(returns[:, 1], returns[:, 0]).std() == pytest.approx(mount.azimuth_noise, rel=0.1)
    assert returns[:, 4].std() == pytest.approx(mount.section_noise, rel=0.1)


def test_clutter_comes_from_within_the_field_of_view_and_is_seeded() -> None:
    mount = RadarMount(clutter=5.0)
    returns = returns_of(snapshot_of(), mount, seeds=200)
    assert len(returns) == pytest.approx(1000, rel=0.1)
    assert (np.abs(np.arctan2(returns[:, 1], returns[:, 0])) < mount.field_of_view / 2 + 0.05).all()
    np.testing.assert_array_equal(returns, returns_of(snapshot_of(), mount, seeds=200))
