"""Argoverse 2 against av2, the dataset's own library: its figures for a log made here, and for real ones.

av2 takes boxes from the moment's ego frame to each image through the city, as the vehicle has moved since the exposure.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely

from framework.data.sources.argoverse import LABELS, Argoverse
from framework.data.sources.argoverse_log import AXLE_HEIGHT_M, read_poses
from framework.data.sources.forecasting import Forecasting
from framework.scene.check import check_scene
from framework.scene.frames import apply, box_corners, rigid
from framework.scene.lens import project
from framework.scene.types import FloatArray, Scene
from tests.data.sources.argoverse_tree import CAMERAS, NAME, write_log

VECTORS = Path(__file__).parent / "vectors"
MADE: dict[str, Any] = json.loads((VECTORS / "av2_sensor.json").read_text())
REAL: dict[str, Any] = json.loads((VECTORS / "av2_real.json").read_text())
EXACT = 1e-6
TO_AXLE = rigid(np.eye(3), np.array([0.0, 0.0, -AXLE_HEIGHT_M]))
"""From our ego frame to av2's."""


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_log(tmp_path_factory.mktemp("argoverse") / "val")


@pytest.fixture(scope="module")
def scenes(log: Path) -> dict[int, Scene]:
    dataset = Argoverse(sweep="annotated")
    (found,) = dataset.find_logs(str(log.parent))
    assert (found.name, found.split, found.official) == (NAME, "held_out", "held_out")
    return {now: dataset.read_scene((path, now)) for path, now in found.frames[:5]}


def _matched(corners: FloatArray, expected: FloatArray) -> list[int]:
    """For each of av2's vertices the index of ours, which are in another order."""
    return [int(np.linalg.norm(corners - vertex, axis=1).argmin()) for vertex in expected]


@pytest.mark.parametrize("moment", MADE["moments"], ids=lambda moment: str(moment["timestamp_ns"]))
def test_poses_boxes_pixels_and_points_are_av2s(moment: dict[str, Any], log: Path, scenes: dict[int, Scene]) -> None:
    now = moment["timestamp_ns"]
    scene = scenes[now]
    assert check_scene(scene) == []
    assert scene.boxes is not None
    assert scene.lidar is not None
    np.testing.assert_allclose(read_poses(log).at(np.array([now]))[0], moment["city_SE3_ego"], atol=EXACT)

    known = [number for number, cuboid in enumerate(moment["cuboids"]) if cuboid["category"] in LABELS]
    corners = box_corners(scene.boxes.values)
    assert scene.boxes.labels == tuple(LABELS[moment["cuboids"][number]["category"]] for number in known)
    order = []
    for ours, number in zip(corners, known, strict=True):
        expected = np.array(moment["cuboids"][number]["vertices_m"])
        order.append(_matched(apply(TO_AXLE, ours), expected))
        np.testing.assert_allclose(apply(TO_AXLE, ours)[order[-1]], expected, atol=EXACT)

    cameras, compared = {camera.name: camera for camera in scene.cameras}, 0
    assert set(cameras) == set(CAMERAS)
    for name, expected in moment["cameras"].items():
        assert cameras[name].times[-1] == pytest.approx((expected["timestamp_ns"] - now) * 1e-9, abs=1e-12)
        for ours, number, places in zip(corners, known, order, strict=True):
            pixels = project(cameras[name], ours)[places]
            for pixel, theirs in zip(pixels, expected["pixels"][8 * number : 8 * number + 8], strict=True):
                assert np.isnan(pixel).all() == (theirs is None)
                if theirs is not None:
                    np.testing.assert_allclose(pixel, theirs, atol=EXACT)
                    compared += 1
    assert compared > 80

    points = apply(TO_AXLE @ scene.lidar.extrinsic, scene.lidar.points[:, :3].astype(np.float64))
    assert len(points) == moment["sweep"]["points"]
    np.testing.assert_allclose(points[0], moment["sweep"]["first_xyz_m"], atol=EXACT)
    np.testing.assert_allclose(points.sum(axis=0), moment["sweep"]["sum_xyz_m"], atol=1e-4)
    assert round(float(scene.lidar.points[:, 3].sum() * 255)) == moment["sweep"]["sum_intensity"]


def test_the_drivable_area_is_av2s(log: Path, scenes: dict[int, Scene]) -> None:
    (expected,) = (shapely.Polygon(np.array(area)[:, :2]) for area in MADE["drivable_areas"])
    for now, scene in scenes.items():
        pose = read_poses(log).at(np.array([now]))[0] @ TO_AXLE
        assert scene.surroundings is not None
        (ring,) = scene.surroundings.drivable
        ego = apply(np.linalg.inv(pose), np.array(MADE["drivable_areas"][0]))
        np.testing.assert_allclose(ring, ego[:-1, :2], atol=EXACT)  # av2 repeats the first corner
        assert shapely.contains(expected, shapely.Point(pose[:2, 3]))


@pytest.mark.parametrize("moment", REAL["moments"], ids=lambda moment: str(moment["timestamp_ns"]))
def test_a_real_log_has_av2s_boxes(moment: dict[str, Any], recordings: Path) -> None:
    logs = [log for log in Argoverse(sweep="annotated").find_logs(str(recordings)) if log.name in REAL["source"]]
    if not logs:
        pytest.skip("the log that the figures are of is not among the recordings")
    now = moment["timestamp_ns"]
    path = next((path for path, at in logs[0].frames if at == now), logs[0].frames[0][0])
    scene = Argoverse(sweep="annotated").read_scene((path, now))
    assert scene.boxes is not None
    assert len(scene.boxes) == moment["cuboids"]
    vertices = apply(TO_AXLE, box_corners(scene.boxes.values)).reshape(-1, 3)
    np.testing.assert_allclose(vertices.mean(axis=0), moment["mean_vertex_ego_m"], atol=EXACT)
    np.testing.assert_allclose((vertices**2).mean(axis=0), moment["mean_square_vertex_ego_m2"], atol=1e-4)
    city = apply(read_poses(Path(path).parent).at(np.array([now]))[0], vertices)
    np.testing.assert_allclose(city.mean(axis=0), moment["mean_vertex_city_m"], atol=EXACT)
    if scene.lidar is not None:
        assert len(scene.lidar.points) == REAL["sweep"]["points"]
        assert json.loads(scene.provenance["lidars"])["up_lidar"] == REAL["sweep"]["up"]
        # float32 of float16 values is exact; the mean is not.
        mean = scene.lidar.points[:, :3].astype(np.float64).mean(axis=0)
        np.testing.assert_allclose(mean, REAL["sweep"]["mean_xyz_m"], atol=EXACT)


def test_the_two_lidars_are_told_apart_as_they_are_mounted(recordings: Path) -> None:
    """The upright one looks down to -25 degrees and up to 15, the one upside down to -15 and 25: HDL-32E beams."""
    from framework.data.sources.argoverse_log import UP_LASERS, read_sweep

    (path,) = list(recordings.glob("argoverse2_*/*/sensors/lidar/*.feather"))[:1] or pytest.skip("no sweep")
    sweep = read_sweep(path)
    points, lasers = sweep.points, sweep.lasers
    angle = np.degrees(np.arctan2(points[:, 2] - 1.6, np.hypot(points[:, 0] - 1.3, points[:, 1])))
    medians = np.array([np.median(angle[lasers == laser]) for laser in range(64)])
    assert medians[:UP_LASERS].min() < -22 < -18 < medians[UP_LASERS:].min()
    assert medians[:UP_LASERS].max() < 18 < 22 < medians[UP_LASERS:].max()


@pytest.mark.parametrize("expected", REAL["forecasting"]["steps"], ids=lambda step: str(step["step"]))
def test_a_real_scenario_has_av2s_tracks(expected: dict[str, Any], recordings: Path) -> None:
    logs = list(Forecasting().find_logs(str(recordings)))
    if not logs:
        pytest.skip("no scenario among the recordings")
    path = logs[0].frames[0][0]
    scene = Forecasting().read_scene((path, expected["step"]))
    assert scene.boxes is not None
    assert scene.surroundings is not None
    assert scene.provenance["timestamp"] == str(expected["timestamp_ns"])
    assert len(scene.boxes) == expected["others"]
    assert json.loads(scene.provenance.get("unmapped", "{}")) == expected["unused"]
    heading, place = expected["ego_heading"], np.array(expected["ego_position_m"])
    turn = np.array([[np.cos(heading), -np.sin(heading)], [np.sin(heading), np.cos(heading)]])
    centres, headings = scene.boxes.values[:, :2], scene.boxes.values[:, 6] + heading
    np.testing.assert_allclose((centres @ turn.T).mean(axis=0) + place, expected["mean_position_m"], atol=EXACT)
    np.testing.assert_allclose(
        (scene.boxes.values[:, 7:9] @ turn.T).mean(axis=0), expected["mean_velocity_mps"], atol=EXACT
    )
    np.testing.assert_allclose([np.cos(headings).mean(), np.sin(headings).mean()], expected["mean_heading"], atol=EXACT)
    later = scene.surroundings.agents[:, 1, :2]
    there = np.isfinite(later).all(axis=1)
    assert int(there.sum()) == expected["half_second_later"]["others"]
    np.testing.assert_allclose(
        (later[there] @ turn.T).mean(axis=0) + place, expected["half_second_later"]["mean_position_m"], atol=EXACT
    )
