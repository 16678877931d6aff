"""Rays against boxes and the ground, compared with a march along each ray."""

from __future__ import annotations

import numpy as np
import pytest

from framework.scene.frames import points_in_box
from framework.scene.world.rays import FRONT, GROUND, LEFT, REAR, RIGHT, TOP, cast, enter_box

BOX = np.array([8.0, 1.0, 1.0, 4.0, 2.0, 2.0, 0.5])


def some_rays(count: int = 400) -> np.ndarray:
    rays = np.random.default_rng(0).normal([1.0, 0.1, -0.05], [0.2, 0.3, 0.1], (count, 3))
    return rays / np.linalg.norm(rays, axis=1, keepdims=True)


def test_a_ray_enters_where_a_march_along_it_first_is_inside() -> None:
    origin, rays = np.array([1.0, 0.0, 1.7]), some_rays()
    enter, _ = enter_box(origin, rays, BOX)
    assert 50 < np.isfinite(enter).sum() < 350
    steps = np.arange(0.0, 15.0, 0.01)
    for ray, distance in zip(rays, enter, strict=True):
        inside = points_in_box(origin + steps[:, None] * ray, BOX)
        if inside.sum() < 3:  # a corner grazed, or nothing
            assert (
                not np.isfinite(distance) or inside.any() or points_in_box((origin + distance * ray)[None], BOX, 1e-9)
            )
        else:
            assert distance == pytest.approx(steps[inside.argmax()], abs=0.011)


@pytest.mark.parametrize(
    ("origin", "ray", "face"),
    [
        ((-9, 0, 0), (1, 0, 0), REAR),
        ((9, 0, 0), (-1, 0, 0), FRONT),
        ((0, -9, 0), (0, 1, 0), RIGHT),
        ((0, 9, 0), (0, -1, 0), LEFT),
        ((0, 0, 9), (0, 0, -1), TOP),
    ],
)
def test_faces_are_named_from_the_boxs_own_side(origin: tuple[int, ...], ray: tuple[int, ...], face: int) -> None:
    yaw = 0.7
    turn = np.array([[np.cos(yaw), -np.sin(yaw), 0], [np.sin(yaw), np.cos(yaw), 0], [0, 0, 1]])
    box = np.array([0, 0, 0, 4.0, 2.0, 1.0, yaw])
    enter, faces = enter_box(turn @ origin, (turn @ ray)[None], box)
    assert faces[0] == face
    assert enter[0] == pytest.approx(9 - np.abs(np.array(ray) @ [2.0, 1.0, 0.5]))


def test_nothing_is_entered_from_inside_or_behind() -> None:
    rays = np.array([[1.0, 0.0, 0.0]])
    assert np.isinf(enter_box(BOX[:3], rays, BOX)[0]).all()
    assert np.isinf(enter_box(np.add(BOX[:3], [10.0, 0.0, 0.0]), rays, BOX)[0]).all()


def test_the_nearest_of_boxes_and_ground_is_hit() -> None:
    far, near = np.add(BOX, [10, 0, 0, 0, 0, 0, 0]), BOX
    rays = np.array([[1.0, 0.12, -0.05], [0.0, 1.0, -0.5], [0.0, 1.0, 0.5]])
    distance, target = cast(np.array([0.0, 0.0, 1.5]), rays, np.stack([far, near]))
    assert target.tolist() == [1, GROUND, GROUND]
    assert cast(np.array([0.0, 0.0, 1.5]), rays, np.stack([near, far]))[1].tolist() == [0, GROUND, GROUND]
    assert distance[1] == pytest.approx(3.0)
    assert np.isinf(distance[2])
