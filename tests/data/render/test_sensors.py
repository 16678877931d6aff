"""Sensors become rows in the ego frame: few enough, near enough, the same on every pass."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from framework.data.render.sensors import BoxesInput, CalibrationInput, EgoInput, LidarInput, RadarInput, SensorInput
from framework.scene.lens import lens_of, project
from framework.scene.types import CLASSES, Boxes, Camera, FloatArray, Lidar, Radar, Scene
from framework.scene.world.generate import generate_scene

SCENE = generate_scene(7, "intersection")
YAW, PITCH, PLACE = 0.7, -0.3, (1.5, -0.4, 1.8)
DRAWN = np.random.default_rng(3)


def _extrinsic() -> FloatArray:
    """A sensor turned by yaw, then pitched, and mounted at a place, written out number by number."""
    cy, sy, cp, sp = math.cos(YAW), math.sin(YAW), math.cos(PITCH), math.sin(PITCH)
    rows = [[cy * cp, -sy, cy * sp, PLACE[0]], [sy * cp, cy, sy * sp, PLACE[1]], [-sp, 0, cp, PLACE[2]], [0, 0, 0, 1]]
    return np.array(rows)


def _by_hand(point: list[float]) -> list[float]:
    """The same mounting, one rotation after another."""
    x, y, z = point[:3]
    x, z = x * math.cos(PITCH) + z * math.sin(PITCH), z * math.cos(PITCH) - x * math.sin(PITCH)
    x, y = x * math.cos(YAW) - y * math.sin(YAW), y * math.cos(YAW) + x * math.sin(YAW)
    return [x + PLACE[0], y + PLACE[1], z + PLACE[2]]


def _mounted(rows: int) -> Scene:
    """A scene whose LiDAR and radar look from an odd angle."""
    points = DRAWN.normal(scale=40.0, size=(rows, 9)).astype(np.float32)
    return dataclasses.replace(
        SCENE, lidar=Lidar(points[:, :4], _extrinsic()), radar=Radar(points[:, 4:], _extrinsic())
    )


def _raw(scene: Scene, sensor: SensorInput) -> FloatArray:
    assert scene.lidar is not None
    assert scene.radar is not None
    return scene.lidar.points if sensor.channels == 4 else scene.radar.returns


@pytest.mark.parametrize("make", [LidarInput, RadarInput])
def test_points_stand_in_the_ego_frame_and_keep_their_other_channels(make: type[LidarInput] | type[RadarInput]) -> None:
    sensor, scene = make(4, 10**6, range_m=1e6), _mounted(200)
    rows, raw = sensor.rows(scene), _raw(scene, sensor)
    assert rows is not None
    assert (rows.dtype, rows.shape) == (np.float32, (200, sensor.channels))
    np.testing.assert_allclose(rows[:, :3], [_by_hand(point) for point in raw.tolist()], atol=2e-4)
    np.testing.assert_array_equal(rows[:, 3:], raw[:, 3:])


@pytest.mark.parametrize("make", [LidarInput, RadarInput])
def test_range_is_on_the_ground_from_the_ego_not_from_the_sensor(make: type[LidarInput] | type[RadarInput]) -> None:
    sensor, scene = make(4, 10**6, range_m=30.0), _mounted(500)
    rows = sensor.rows(scene)
    away = [math.hypot(*_by_hand(point)[:2]) for point in _raw(scene, sensor).tolist()]
    assert rows is not None
    assert len(rows) == sum(distance <= 30.0 for distance in away)
    assert 0 < len(rows) < 500


@pytest.mark.parametrize("make", [LidarInput, RadarInput])
@pytest.mark.parametrize("most", [1, 7, 120])
def test_the_same_few_rows_in_their_order_every_time(make: type[LidarInput] | type[RadarInput], most: int) -> None:
    scene = _mounted(500)
    whole, few = make(4, 10**6, range_m=50.0).rows(scene), make(4, most, range_m=50.0).rows(scene)
    again = make(4, most, range_m=50.0).rows(scene)
    assert whole is not None
    assert few is not None
    assert again is not None
    assert len(few) == most
    assert few.tobytes() == again.tobytes()
    places = [int(np.flatnonzero((whole == row).all(axis=1))[0]) for row in few]
    assert places == sorted(set(places))
    if most > 1:
        assert max(np.diff([*places, len(whole)])) <= math.ceil(len(whole) / (most - 1)), "spread over the whole sweep"


@pytest.mark.parametrize("sensor", [LidarInput(4), RadarInput(4), BoxesInput(), EgoInput(), CalibrationInput()])
def test_a_scene_of_the_world_has_rows_and_a_bare_one_none(sensor: SensorInput) -> None:
    rows = sensor.rows(SCENE)
    assert rows is not None
    assert rows.dtype == np.float32
    assert rows.shape[1] == sensor.channels
    assert np.isfinite(rows).all()
    assert sensor.rows(Scene(id="bare", kind="none")) is None


def test_a_sensor_that_saw_nothing_is_absent() -> None:
    far, none = np.full((3, 5), 500.0, dtype=np.float32), np.zeros((0, 5), dtype=np.float32)
    for rows in (far, none):
        scene = dataclasses.replace(SCENE, lidar=Lidar(rows[:, :4], np.eye(4)), radar=Radar(rows, np.eye(4)))
        assert LidarInput(4).rows(scene) is None
        assert RadarInput(4).rows(scene) is None
    assert BoxesInput().rows(dataclasses.replace(SCENE, perception=Boxes(np.zeros((0, 9)), ()))) is None


def test_boxes_come_nearest_first_with_class_and_score_and_unknown_velocity_zero() -> None:
    values = np.arange(36, dtype=np.float64).reshape(4, 9) + 1.0
    values[:, :2] = [[30.0, 0.0], [3.0, 4.0], [0.0, -20.0], [-1.0, 0.0]]
    values[1, 7:] = np.nan
    labels, scores = ("bus", "animal", "car", "barrier"), np.array([0.1, 0.2, 0.3, 0.4])
    scene = dataclasses.replace(SCENE, perception=Boxes(values, labels, scores=scores))
    rows = BoxesInput(max_boxes=3).rows(scene)
    assert rows is not None
    assert rows[:, :2].tolist() == [[-1.0, 0.0], [3.0, 4.0], [0.0, -20.0]]
    assert [CLASSES[int(index)] for index in rows[:, 9]] == ["barrier", "animal", "car"]
    np.testing.assert_allclose(rows[:, 10], [0.4, 0.2, 0.3])
    np.testing.assert_array_equal(rows[:, 7:9], [values[3, 7:], [0.0, 0.0], values[2, 7:]])
    unscored = BoxesInput().rows(dataclasses.replace(SCENE, perception=Boxes(values, labels)))
    assert unscored is not None
    assert unscored[:, 10].tolist() == [1.0] * 4
    assert BoxesInput().placeholders(unscored) == 4


def test_the_history_is_one_token_a_state_and_points_share_theirs() -> None:
    assert SCENE.history is not None
    rows = EgoInput().rows(SCENE)
    assert rows is not None
    np.testing.assert_allclose(rows, SCENE.history.states, rtol=1e-6)
    assert EgoInput().placeholders(rows) == len(SCENE.history.states)
    assert {LidarInput(6).placeholders(np.zeros((n, 4))) for n in (1, 50)} == {6}
    assert {RadarInput(3).placeholders(np.zeros((n, 5))) for n in (1, 50)} == {3}


def _camera(name: str, extrinsic: FloatArray, **changes: object) -> Camera:
    intrinsic = np.array([[50.0, 0, 30], [0, 50.0, 20], [0, 0, 1]])
    camera = Camera(name, (b"",), np.zeros(1), intrinsic, extrinsic, 64, 48)
    return dataclasses.replace(camera, **changes)


def test_a_calibration_is_a_place_and_the_rays_of_a_grid_of_pixels() -> None:
    bent = _camera("left", _extrinsic(), lens=lens_of("fisheye", np.array([0.1, 0.01, 0.0, 0.0])))
    scene = Scene("rig", "made", cameras=(_camera("front", np.eye(4)), bent))
    rows = CalibrationInput(grid=2).rows(scene)
    assert rows is not None
    assert rows.shape == (2, 15)
    np.testing.assert_allclose(rows[0, 3:6], np.array([-14.0, -8.0, 50.0]) / np.sqrt(14.0**2 + 8.0**2 + 50.0**2))
    np.testing.assert_allclose(rows[1, :3], PLACE, rtol=1e-6)
    seen = project(bent, bent.extrinsic[:3, 3] + 20.0 * rows[1, 3:].reshape(4, 3).astype(np.float64))
    np.testing.assert_allclose(seen, [[16, 12], [48, 12], [16, 36], [48, 36]], atol=1e-4)


def test_calibrations_come_in_the_order_of_the_prompts_cameras() -> None:
    front, left = _camera("front", np.eye(4)), _camera("left", _extrinsic())
    scene = Scene("rig", "made", cameras=(front, left))
    rows = CalibrationInput(cameras=["left", "absent", "front"]).rows(scene)
    assert rows is not None
    np.testing.assert_allclose(rows[:, :3], [PLACE, (0, 0, 0)], rtol=1e-6)
    assert CalibrationInput(cameras=["absent"]).rows(scene) is None
    assert CalibrationInput().placeholders(rows) == 2


def test_directions_that_a_lens_does_not_show_are_zero() -> None:
    narrow = _camera("front", np.eye(4), lens=lens_of("brown_conrady", np.array([-9.0, 0.0, 0.0, 0.0])))
    rows = CalibrationInput().rows(Scene("rig", "made", cameras=(narrow,)))
    assert rows is not None
    assert np.isfinite(rows).all()
    lengths = np.linalg.norm(rows[0, 3:].reshape(16, 3), axis=1)
    assert set(lengths.round(6).tolist()) == {0.0, 1.0}
