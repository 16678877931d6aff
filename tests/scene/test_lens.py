"""Lenses: OpenCV's own figures, the way there and back, and the end of the view."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from framework.scene.frames import project as project_pinhole
from framework.scene.frames import rigid, yaw_rotation
from framework.scene.lens import check_lens, distort, lens_of, project, rays, undistort, widest
from framework.scene.types import Camera, FloatArray, Lens, SceneError

VECTORS = json.loads((Path(__file__).parent / "vectors" / "opencv_lenses.json").read_text())
INTRINSIC = np.array([[400.0, 0.5, 320.0], [0.0, 410.0, 240.0], [0.0, 0.0, 1.0]])
EXTRINSIC = rigid(yaw_rotation(0.4) @ np.array([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]]), np.array([1.5, 0.2, 1.6]))
LENSES = {
    "pinhole": None,
    "barrel": lens_of("brown_conrady", np.array([-0.3, 0.1, 0.001, -0.0005, -0.02])),
    "rational": lens_of("brown_conrady", np.array([0.4, -0.1, 0.0007, -0.0003, 0.01, 0.7, -0.05, 0.02])),
    "prism": lens_of("brown_conrady", np.array([0.1, 0, 0.001, 0, 0, 0, 0, 0, 0.001, 0, -0.001, 0.0005])),
    "fisheye": lens_of("fisheye", np.array([-0.04, 0.008, -0.002, 0.0003])),
    "f_theta": lens_of("f_theta", np.array([1.0, 0.02, -0.06, 0.004])),
    "mei": lens_of("mei", np.array([1.8, 0.02, -0.01])),
    "mei_wide": lens_of("mei", np.array([0.8, 0.1, 0.0])),
}


def camera(lens: Lens | None) -> Camera:
    return Camera("front", (), np.zeros(0), INTRINSIC, EXTRINSIC, 640, 480, lens=lens)


def within(lens: Lens | None, count: int = 500) -> FloatArray:
    """Camera-frame points at all angles inside the lens's view."""
    rng = np.random.default_rng(3)
    angle, around = rng.uniform(0, 0.97 * min(widest(lens), 1.5), count), rng.uniform(-np.pi, np.pi, count)
    angle[0] = 0.0
    rays = np.stack([np.sin(angle) * np.cos(around), np.sin(angle) * np.sin(around), np.cos(angle)], axis=1)
    return rays * rng.uniform(0.5, 80.0, (count, 1))


@pytest.mark.parametrize("case", VECTORS["cases"], ids=lambda case: f"{case['model']}-{len(case['coefficients'])}")
def test_pixels_are_opencvs(case: dict[str, Any]) -> None:
    lens, points = lens_of(case["model"], np.array(case["coefficients"])), np.array(case["points"])
    seen = dataclasses.replace(camera(lens), intrinsic=np.array(case["intrinsic"]), extrinsic=np.eye(4))
    pixels = project(seen, points)
    angles = np.arctan2(np.hypot(points[:, 0], points[:, 1]), points[:, 2])
    np.testing.assert_array_equal(np.isfinite(pixels).all(axis=1), angles < widest(lens))
    shown = np.isfinite(pixels).all(axis=1)
    assert shown.sum() >= 8
    np.testing.assert_allclose(pixels[shown], np.array(case["pixels"])[shown], rtol=0, atol=1e-9)


def test_f_theta_is_its_polynomial_in_pixels() -> None:
    """By hand: at 60 degrees to the right of a camera of `radius = 900 theta - 40 theta^3` pixels."""
    lens = lens_of("f_theta", np.array([900.0, 0.0, -40.0]) / 900.0)
    intrinsic = np.array([[900.0, 0, 960], [0, 900.0, 604], [0, 0, 1]])
    seen = dataclasses.replace(camera(lens), intrinsic=intrinsic, extrinsic=np.eye(4))
    theta = np.pi / 3
    (pixel,) = project(seen, np.array([[np.sin(theta), 0.0, np.cos(theta)]]) * 17.0)
    np.testing.assert_allclose(pixel, [960 + 900 * theta - 40 * theta**3, 604.0], atol=1e-9)


@pytest.mark.parametrize("name", LENSES)
def test_rays_lead_back_to_their_pixels(name: str) -> None:
    lens = LENSES[name]
    points = within(lens)
    directions = undistort(lens, distort(lens, points))
    np.testing.assert_allclose(directions, points / np.linalg.norm(points, axis=1, keepdims=True), atol=1e-9)
    seen = camera(lens)
    rng = np.random.default_rng(4)
    pixels = rng.uniform([180, 120], [460, 360], (200, 2))  # the lenses show no corners
    away = rays(seen, pixels)
    assert np.isfinite(away).all()
    np.testing.assert_allclose(project(seen, seen.extrinsic[:3, 3] + 30.0 * away), pixels, atol=1e-8)


def test_a_pinhole_is_the_matrix() -> None:
    points = np.random.default_rng(5).uniform(-30, 30, (300, 3))
    expected, depth = project_pinhole(points, INTRINSIC, EXTRINSIC)
    pixels = project(camera(None), points)
    np.testing.assert_array_equal(np.isfinite(pixels).all(axis=1), depth > 0)
    np.testing.assert_allclose(pixels[depth > 0], expected[depth > 0], rtol=1e-9)


@pytest.mark.parametrize("model", ["fisheye", "f_theta"])
def test_wide_lenses_see_behind_themselves(model: str) -> None:
    lens = lens_of(model, np.array([0.0] * 4 if model == "fisheye" else [1.0]))
    (place,) = distort(lens, np.array([[1.0, 0.0, -0.5]]))
    np.testing.assert_allclose(place, [np.pi / 2 + np.arctan(0.5), 0.0])
    assert np.isnan(distort(None, np.array([[1.0, 0.0, -0.5]]))).all()


def test_what_a_polynomial_folds_back_into_the_image_is_not_seen() -> None:
    lens = lens_of("brown_conrady", np.array([-0.3, 0.0, 0.0, 0.0]))  # r - 0.3 r^3 turns back at r^2 = 1 / 0.9
    assert widest(lens) == pytest.approx(np.arctan(np.sqrt(1 / 0.9)))
    inside, folded = np.array([[1.0, 0.0, 1.0]]), np.array([[1.8, 0.0, 1.0]])
    assert np.isfinite(distort(lens, inside)).all()
    assert np.isnan(distort(lens, folded)).all(), "the polynomial would put it at 0.05, near the centre"
    assert np.isnan(undistort(lens, np.array([[0.9, 0.0]]))).all(), "farther than any ray comes to lie"
    assert widest(lens_of("f_theta", np.array([1.0, 0.0, -1 / 3]))) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("model", "coefficients", "complaint"),
    [
        ("polynomial", [0.1], "model 'polynomial' is unknown"),
        ("brown_conrady", [0.1, 0.2, 0.3], r"shape \(3,\); brown_conrady has 4 or 5 or 8 or 12"),
        ("fisheye", [0.1] * 5, "fisheye has 4"),
        ("fisheye", [0.1, np.nan, 0, 0], "NaN or infinite"),
        ("f_theta", [0.0, 1.0], "the factor of theta is 0.0, not positive"),
        ("mei", [-1.0, 0.0, 0.0], "xi is -1.0, negative"),
    ],
)
def test_lenses_that_are_none(model: str, coefficients: list[float], complaint: str) -> None:
    with pytest.raises(SceneError, match=complaint):
        lens_of(model, np.array(coefficients))
    assert check_lens(Lens(model, np.array(coefficients)))
