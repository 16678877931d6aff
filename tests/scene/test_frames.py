"""Frames: angles, rigid transforms, boxes and projection."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from framework.scene import frames
from framework.scene.types import Boxes


@pytest.mark.parametrize(
    ("angle", "wrapped"),
    [
        (math.pi, math.pi),
        (-math.pi, math.pi),
        (3 * math.pi, math.pi),
        (0.3, 0.3),
        (-0.3 - 4 * math.pi, -0.3),
        (6.5, 6.5 - 2 * math.pi),
    ],
)
def test_angles_wrap_to_the_half_open_interval(angle: float, wrapped: float) -> None:
    assert frames.wrap_angle(np.array(angle)) == pytest.approx(wrapped)
    assert float(frames.wrap_angle(torch.tensor(angle, dtype=torch.float64))) == pytest.approx(wrapped)


def test_inverse_undoes() -> None:
    transform = frames.rigid(frames.quaternion_rotation(np.array([0.5, 0.5, -0.5, 0.5])), np.array([1.0, 2.0, 3.0]))
    points = np.random.default_rng(0).normal(size=(5, 3))
    np.testing.assert_allclose(
        frames.apply(frames.invert(transform), frames.apply(transform, points)), points, atol=1e-12
    )


def test_quaternion_of_a_yaw() -> None:
    half = 0.35
    np.testing.assert_allclose(
        frames.quaternion_rotation(np.array([math.cos(half), 0, 0, math.sin(half)])),
        frames.yaw_rotation(0.7),
        atol=1e-12,
    )


def test_corners_lie_in_their_box_and_nowhere_else() -> None:
    box = np.array([[10.0, -3.0, 1.0, 4.0, 2.0, 1.5, 0.6]])
    corners = frames.box_corners(box)[0]
    assert frames.points_in_box(corners, box[0], margin=1e-9).all()
    assert not frames.points_in_box(corners + (corners - box[0, :3]) * 0.01, box[0]).any()
    np.testing.assert_allclose(corners[:4, 2], 0.25)
    front_left = box[0, :3] + frames.yaw_rotation(0.6) @ [2.0, 1.0, -0.75]
    np.testing.assert_allclose(corners[0], front_left)


def test_boxes_move_with_their_corners_and_turn_their_velocities() -> None:
    boxes = Boxes(np.array([[10.0, -3.0, 1.0, 4.0, 2.0, 1.5, 3.0, 5.0, 0.0]]), ("car",))
    transform = frames.rigid(frames.yaw_rotation(math.pi / 2), np.array([1.0, 0.0, -0.3]))
    moved = frames.transform_boxes(boxes, transform)
    np.testing.assert_allclose(
        frames.box_corners(moved.values), frames.apply(transform, frames.box_corners(boxes.values)), atol=1e-9
    )
    np.testing.assert_allclose(moved.values[0, 7:9], [0.0, 5.0], atol=1e-12)


def test_projection_of_the_optical_axis_is_the_principal_point() -> None:
    forward = np.array([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])  # camera axes as columns in the ego frame
    extrinsic = frames.rigid(forward, np.array([1.5, 0.0, 1.6]))
    intrinsic = np.array([[100.0, 0, 48], [0, 100.0, 32], [0, 0, 1]])
    pixels, depth = frames.project(np.array([[11.5, 0.0, 1.6], [11.5, -1.0, 1.6], [-5.0, 0, 0]]), intrinsic, extrinsic)
    np.testing.assert_allclose(pixels[:2], [[48, 32], [58, 32]])
    np.testing.assert_allclose(depth[:2], 10.0)
    assert depth[2] < 0
