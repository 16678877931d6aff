"""Geometry on tensors against shapely."""

from __future__ import annotations

import math

import numpy as np
import pytest
import shapely
import torch
from torch import Tensor

from framework.scene.contact import approach, overlaps
from framework.scene.kinematics import EGO, ego_box
from framework.simulation.geometry import corners, crossing, inside, project_onto
from framework.simulation.scenes import _surface

PAIRS = 3000


def random_boxes(count: int, seed: int) -> Tensor:
    rng = np.random.default_rng(seed)
    boxes = np.column_stack([rng.uniform(-6, 6, (count, 2)), rng.uniform(-math.pi, math.pi, count)])
    return torch.from_numpy(np.column_stack([boxes, rng.uniform(0.3, 9.0, count), rng.uniform(0.3, 3.0, count)]))


def moved(boxes: Tensor, way: Tensor) -> Tensor:
    return torch.cat([boxes[:, :2] + way, boxes[:, 2:]], dim=-1)


def test_boxes_overlap_exactly_where_shapely_says_so() -> None:
    first, second = random_boxes(PAIRS, 0), random_boxes(PAIRS, 1)
    overlap, _ = approach(first, second, torch.zeros(PAIRS, 2, dtype=torch.float64))
    bodies = [shapely.polygons(corners(boxes).numpy()) for boxes in (first, second)]
    expected = shapely.area(shapely.intersection(*bodies)) > 0
    assert 0.1 < expected.mean() < 0.9
    np.testing.assert_array_equal(overlap.numpy(), expected)
    np.testing.assert_array_equal(overlaps(first, second).numpy(), expected)
    crossed = np.asarray(overlaps(first[:40, None].numpy(), second[:60].numpy()))
    assert crossed.shape == (40, 60)
    np.testing.assert_array_equal(crossed.diagonal(), expected[:40])


def test_time_to_collision_is_when_they_meet() -> None:
    first, second = random_boxes(PAIRS, 2), random_boxes(PAIRS, 3)
    second[:, :2] *= 4
    velocity = torch.from_numpy(np.random.default_rng(4).uniform(-9, 9, (PAIRS, 2)))
    overlap, time = approach(first, second, velocity)
    meets = time.isfinite() & ~overlap
    assert 100 < int(meets.sum()) < PAIRS
    assert (time[overlap] == 0).all()
    still = torch.zeros_like(velocity)
    for shift, expected in ((-1e-6, False), (1e-6, True)):
        way = velocity[meets] * (time[meets] + shift)[:, None]
        now, _ = approach(first[meets], moved(second[meets], way), still[meets])
        assert (now == expected).float().mean() > 0.999  # a corner that only just grazes may be gone by then
    never = ~overlap & time.isinf()
    for later in np.arange(0.0, 6.0, 0.05):
        assert not approach(first[never], moved(second[never], velocity[never] * later), still[never])[0].any()


def test_points_on_the_drivable_surface_are_shapelys() -> None:
    rng = np.random.default_rng(5)
    ring = shapely.Point(0, 0).buffer(30.0) - shapely.Point(5, 0).buffer(12.0)
    halves = [
        shapely.get_coordinates(shapely.intersection(ring, half))
        for half in (shapely.box(-40, -40, 0, 40), shapely.box(0, -40, 40, 40))
    ]
    cross = [np.array([[-60.0, -4.0], [60.0, -4.0], [60.0, 4.0], [-60.0, 4.0]])]
    for polygons in (halves, halves + cross, [*cross, cross[0][:, ::-1] + 90.0]):
        union = shapely.union_all([shapely.make_valid(shapely.polygons(one)) for one in polygons])
        surface = shapely.buffer(union, 0.1, join_style="mitre")
        points = rng.uniform(-70, 120, (20000, 2))
        clear = shapely.distance(shapely.points(points), surface.boundary) > 1e-9
        expected = shapely.contains_xy(surface, points[:, 0], points[:, 1])
        found = inside(torch.from_numpy(points)[None], torch.from_numpy(_surface(polygons))[None])[0].numpy()
        assert 0.02 < expected.mean() < 0.98
        np.testing.assert_array_equal(found[clear], expected[clear])


def test_padding_changes_no_surface() -> None:
    edges = torch.from_numpy(_surface([np.array([[0.0, 0.0], [9.0, 0.0], [9.0, 9.0], [0.0, 9.0]])]))
    points = torch.rand(1, 500, 2, dtype=torch.float64) * 14 - 3
    padded = torch.cat([edges, torch.zeros(7, 4)])
    assert torch.equal(inside(points, edges[None]), inside(points, padded[None]))


def test_projection_is_shapelys_nearest_place() -> None:
    rng = np.random.default_rng(6)
    line = np.cumsum(rng.uniform(0.5, 3.0, (30, 2)) * [1, 0.3], axis=0)
    points = rng.uniform(line.min(axis=0) - 5, line.max(axis=0) + 5, (400, 2))
    padded = np.concatenate([line, np.repeat(line[-1:], 5, axis=0)])
    station, offset, heading = project_onto(torch.from_numpy(points), torch.from_numpy(padded)[None])
    string = shapely.LineString(line)
    nearest = shapely.line_locate_point(string, shapely.points(points))
    np.testing.assert_allclose(offset.abs(), shapely.distance(string, shapely.points(points)), atol=1e-9)
    assert np.isclose(station, nearest, atol=1e-9).mean() > 0.99  # two places may be equally near
    inner = (nearest > 1) & (nearest < string.length - 1)
    ahead = np.stack([np.cos(heading), np.sin(heading)], axis=1)
    foot = shapely.get_coordinates(shapely.line_interpolate_point(string, nearest))
    side = np.sign(ahead[:, 0] * (points - foot)[:, 1] - ahead[:, 1] * (points - foot)[:, 0])
    np.testing.assert_array_equal(np.sign(offset.numpy())[inner], side[inner])


def test_a_line_of_no_length_has_its_place_at_its_beginning() -> None:
    station, offset, _ = project_onto(torch.tensor([[3.0, 4.0]]), torch.zeros(1, 5, 2))
    assert float(station) == 0.0
    assert offset.isfinite().all()


def test_segments_cross_where_shapely_says_so() -> None:
    rng = np.random.default_rng(7)
    first, second = rng.uniform(-5, 5, (2, 2000, 4))
    share, other = crossing(torch.from_numpy(first), torch.from_numpy(second))
    lines = [shapely.linestrings(pair.reshape(-1, 2, 2)) for pair in (first, second)]
    meet = shapely.intersects(*lines)
    np.testing.assert_array_equal(share.isfinite().numpy(), meet)
    place = shapely.get_coordinates(shapely.intersection(lines[0][meet], lines[1][meet]))
    for segment, part in ((first, share), (second, other)):
        along = segment[meet, :2] + part.numpy()[meet, None] * (segment[meet, 2:] - segment[meet, :2])
        np.testing.assert_allclose(along, place, atol=1e-9)


def test_parallel_segments_never_cross() -> None:
    share, _ = crossing(torch.tensor([0.0, 0.0, 1.0, 0.0]), torch.tensor([[0.5, 0.0, 2.0, 0.0], [0.0, 1.0, 1.0, 1.0]]))
    assert share.isnan().all()


def test_the_egos_body_reaches_from_bumper_to_bumper() -> None:
    body = corners(ego_box(torch.tensor([[1.0, 2.0, math.pi / 2, 5.0]], dtype=torch.float64), EGO))[0]
    expected = [[1 - 0.95, 2 + 3.6], [1 - 0.95, 2 - 1.0], [1 + 0.95, 2 - 1.0], [1 + 0.95, 2 + 3.6]]
    assert body.numpy() == pytest.approx(np.array(expected))
