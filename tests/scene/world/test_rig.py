"""Rigs: cameras look where they say, and together all around."""

from __future__ import annotations

import math

import numpy as np
import pytest

from framework.scene.frames import is_rigid, project
from framework.scene.world.rig import FULL_RIG, TINY_RIG, CameraMount, Rig


def seen_by(mount: CameraMount, point: np.ndarray) -> bool:
    (pixel,), (depth,) = project(point[None], mount.intrinsic, mount.extrinsic)
    return bool(depth > 0 and 0 <= pixel[0] <= mount.width and 0 <= pixel[1] <= mount.height)


@pytest.mark.parametrize("mount", TINY_RIG.cameras + FULL_RIG.cameras, ids=lambda mount: f"{mount.name}{mount.width}")
def test_the_field_of_view_ends_at_the_images_sides(mount: CameraMount) -> None:
    assert is_rigid(mount.extrinsic)
    for share, column in ((0.5, 0.0), (0.0, mount.width / 2), (-0.5, mount.width)):
        angle = mount.yaw + share * mount.field_of_view
        point = np.array(mount.position) + 7.0 * np.array([math.cos(angle), math.sin(angle), 0.0])
        (pixel,), (depth,) = project(point[None], mount.intrinsic, mount.extrinsic)
        np.testing.assert_allclose(pixel, [column, mount.height / 2], atol=1e-9)
        assert depth == pytest.approx(7.0 * math.cos(share * mount.field_of_view))


def test_higher_is_further_up_in_the_image_and_left_further_left() -> None:
    front = TINY_RIG.cameras[0]
    points = np.array([[20.0, 0.0, 1.6], [20.0, 1.0, 1.6], [20.0, 0.0, 2.6]])
    pixels, _ = project(points, front.intrinsic, front.extrinsic)
    assert pixels[1, 0] < pixels[0, 0]
    assert pixels[2, 1] < pixels[0, 1]


def test_only_cameras_that_are_shown_stay() -> None:
    assert [mount.name for mount in TINY_RIG.shown(["right", "front"]).cameras] == ["front", "right"]
    assert TINY_RIG.shown(None) is TINY_RIG
    assert TINY_RIG.shown([]).cameras == ()
    assert TINY_RIG.shown(["ring_front_center"]) is TINY_RIG


@pytest.mark.parametrize(("rig", "widest"), [(TINY_RIG, 90), (FULL_RIG, 180)])
def test_no_direction_is_left_out(rig: Rig, widest: int) -> None:
    for angle in np.radians(np.arange(-widest, widest + 1)):
        point = np.array([1.5, 0.0, 0.0]) + 30.0 * np.array([math.cos(angle), math.sin(angle), 0.03])
        assert any(seen_by(mount, point) for mount in rig.cameras), math.degrees(angle)
