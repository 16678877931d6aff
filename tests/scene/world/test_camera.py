"""Cameras: what is painted is what projects there, and the nearest hides the rest."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
import shapely
from PIL import Image

from framework.scene.frames import apply, box_corners, invert, project
from framework.scene.types import Boxes
from framework.scene.world.camera import ASPHALT, COLOURS, NEAR_M, PAINT, SHADES, paint, render_cameras
from framework.scene.world.generate import generate_scene
from framework.scene.world.rig import FULL_RIG, TINY_RIG, CameraMount
from framework.scene.world.state import Road, Snapshot

NO_ROAD = Road((), (), np.zeros((0, 2)), 10.0)
FRONT, LEFT, RIGHT = TINY_RIG.cameras
BACK = CameraMount("back", 120, 70, 1.5, 3.0, (-0.7, 0.2, 1.2))
EDGES = [(0, 1), (1, 2), (2, 3), (3, 0), (4, 5), (5, 6), (6, 7), (7, 4), (0, 4), (1, 5), (2, 6), (3, 7)]


def boxes_of(*rows: tuple[str, list[float]]) -> Boxes:
    """Boxes from class names with x, y, length, width, height, yaw, standing on the ground, and a velocity if given."""
    values = [[*row[:2], row[4] / 2, *row[2:6], *(row[6:] or (0.0, 0.0))] for _, row in rows]
    return Boxes(np.array(values, dtype=float).reshape(-1, 9), tuple(label for label, _ in rows))


def painted(boxes: Boxes, mount: CameraMount) -> np.ndarray:
    """Which pixels the boxes changed, `(height, width)`."""
    nothing = np.array(paint(boxes_of(), NO_ROAD, mount))
    return (np.array(paint(boxes, NO_ROAD, mount)) != nothing).any(axis=2)


def pixels_inside(points: np.ndarray, mount: CameraMount, margin: float) -> np.ndarray:
    """Pixels whose centre is in the convex hull of image points, grown by `margin` pixels."""
    hull = shapely.MultiPoint(points).convex_hull.buffer(margin)
    columns, rows = np.meshgrid(np.arange(mount.width) + 0.5, np.arange(mount.height) + 0.5)
    return np.asarray(shapely.contains_xy(hull, columns, rows))


def check_silhouette(box: Boxes, mount: CameraMount) -> int:
    """Compare with the hull of the projected corners, cut at the near plane; returns the count of painted pixels."""
    corners = apply(invert(mount.extrinsic), box_corners(box.values)[0])
    cuts = []
    for start, end in ((corners[a], corners[b]) for a, b in EDGES):
        if (start[2] < NEAR_M) != (end[2] < NEAR_M):
            cuts.append(start + (NEAR_M - start[2]) / (end[2] - start[2]) * (end - start))
    solid = [*corners[corners[:, 2] >= NEAR_M], *cuts]
    mask = painted(box, mount)
    if not solid:
        assert not mask.any()
        return 0
    image = [(mount.intrinsic @ point)[:2] / point[2] for point in solid]
    surely, perhaps = (pixels_inside(np.array(image), mount, margin) for margin in (-1e-6, 1e-6))
    if cuts:  # through the cut one looks into the box, where nothing is painted
        opening = np.array([(mount.intrinsic @ point)[:2] / point[2] for point in cuts])
        surely &= ~pixels_inside(opening, mount, 1e-6)
        perhaps &= ~pixels_inside(opening, mount, -1e-6)
    assert not (surely & ~mask).any()
    assert not (mask & ~perhaps).any()
    return int(mask.sum())


@pytest.mark.parametrize("mount", [FRONT, LEFT, RIGHT, BACK], ids=lambda mount: mount.name)
@pytest.mark.fast_cases(1)
def test_a_box_is_painted_exactly_where_it_projects(mount: CameraMount) -> None:
    rng = np.random.default_rng(3)
    whole, cut = 0, 0
    for _ in range(60):
        angle, distance = mount.yaw + rng.uniform(-0.8, 0.8), rng.uniform(2.0, 25.0)
        place = [1.5 + distance * math.cos(angle), distance * math.sin(angle)]
        box = boxes_of(("car", [*place, *rng.uniform(0.5, 5.0, 3), rng.uniform(-3.1, 3.1)]))
        pixels, depth = project(box_corners(box.values)[0], mount.intrinsic, mount.extrinsic)
        within = (depth > NEAR_M).all() and (pixels >= 0).all() and (pixels <= [mount.width, mount.height]).all()
        count = check_silhouette(box, mount)
        whole, cut = whole + within, cut + (count > 0 and not within)
    assert whole >= 5  # wholly in view
    assert cut >= 5  # across an edge of the image


@pytest.mark.parametrize("yaw", [0.0, 0.4, 1.5, -2.5])
@pytest.mark.parametrize("place", [(8.0, 0.0), (15.0, 3.0), (30.0, -6.0)])
def test_the_painted_extent_is_that_of_the_projected_corners(place: tuple[float, float], yaw: float) -> None:
    mount = FULL_RIG.cameras[0]
    box = boxes_of(("car", [*place, 4.5, 1.9, 1.6, yaw]))
    pixels, _ = project(box_corners(box.values)[0], mount.intrinsic, mount.extrinsic)
    rows, columns = np.nonzero(painted(box, mount))
    low, high = np.clip(pixels.min(axis=0), 0, None), np.clip(pixels.max(axis=0), None, [mount.width, mount.height])
    np.testing.assert_allclose([columns.min(), rows.min()], low, atol=1.0)
    np.testing.assert_allclose([columns.max() + 1, rows.max() + 1], high, atol=1.0)


def test_boxes_across_the_near_plane_are_cut_there() -> None:
    neighbour = boxes_of(("bus", [2.0, 1.6, 11.0, 2.6, 3.3, 0.0]))
    assert check_silhouette(neighbour, FRONT) > 100
    touching = boxes_of(("bus", [2.0, 1.45, 11.0, 2.6, 3.3, 0.0]))
    assert check_silhouette(touching, FRONT) > 100
    around = boxes_of(("bus", [1.5, 0.0, 11.0, 2.6, 3.3, 0.0]))
    assert check_silhouette(around, FRONT) == 0
    behind = boxes_of(("bus", [-12.0, 0.0, 11.0, 2.6, 3.3, 0.0]))
    assert check_silhouette(behind, FRONT) == 0


def colours_of(label: str) -> set[tuple[int, ...]]:
    return {tuple(row) for row in (SHADES[:, None] * np.array(COLOURS[label])).astype(np.uint8).tolist()}


def classes_seen(image: Image.Image) -> set[str]:
    seen = {tuple(pixel) for pixel in np.array(image).reshape(-1, 3).tolist()}
    return {label for label in COLOURS if colours_of(label) & seen}


@pytest.mark.parametrize("flip", [False, True])
def test_what_is_nearer_hides_what_is_behind_even_when_its_centre_is_farther(flip: bool) -> None:
    wall = ("truck", [20.0, -2.0, 30.0, 0.2, 3.0, 0.0])
    hidden, before = (
        ("pedestrian", [12.0, -3.0, 0.6, 0.6, 1.75, 0.0]),
        ("traffic_cone", [12.0, -1.0, 0.4, 0.4, 0.8, 0.0]),
    )
    rows = [wall, hidden, before]
    boxes = boxes_of(*(reversed(rows) if flip else rows))
    assert classes_seen(paint(boxes, NO_ROAD, FRONT)) == {"truck", "traffic_cone"}
    assert classes_seen(paint(boxes_of(hidden), NO_ROAD, FRONT)) == {"pedestrian"}


@pytest.mark.slow
def test_the_road_lies_where_the_rays_through_the_pixels_meet_it() -> None:
    checked = 0
    for seed, kind in ((1, "curve"), (2, "intersection"), (3, "blocked_lane")):
        surroundings = generate_scene(seed, kind, rig=None).surroundings
        assert surroundings is not None
        surface = shapely.union_all([shapely.polygons(ring) for ring in surroundings.drivable])
        for mount in FULL_RIG.cameras[: None if kind == "intersection" else 1]:
            image = np.array(paint(boxes_of(), Road(surroundings.drivable, (), np.zeros((0, 2)), 10.0), mount))
            checked += check_surface(image, surface, mount)
    assert checked > 50_000


def check_surface(image: np.ndarray, surface: shapely.Geometry, mount: CameraMount) -> int:
    """Within 40 m only pixels next to the surface's edge may differ (the painter rounds); how many are asphalt."""
    columns, rows = np.meshgrid(np.arange(mount.width) + 0.5, np.arange(mount.height) + 0.5)
    rays = np.stack([columns, rows, np.ones_like(rows)], axis=-1) @ np.linalg.inv(mount.intrinsic).T
    rays = rays @ mount.extrinsic[:3, :3].T
    reach = np.where(rays[..., 2] < -1e-9, -mount.position[2] / np.minimum(rays[..., 2], -1e-9), np.inf)
    near = reach < 40.0
    points = np.array(mount.position) + np.where(near, reach, 0.0)[..., None] * rays
    expected = near & shapely.contains_xy(surface, points[..., 0], points[..., 1])
    asphalt = (image == ASPHALT).all(axis=2)
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(expected, 2, mode="edge"), (5, 5))
    uniform = windows.all(axis=(2, 3)) | ~windows.any(axis=(2, 3))
    differs = near & np.roll(near, 3, axis=0) & uniform & (asphalt != expected)
    assert not differs.any(), (mount.name, int(differs.sum()))
    return int((asphalt & near).sum())


def test_markings_are_painted_where_they_project() -> None:
    mount = FULL_RIG.cameras[0]
    road = Road((), (np.array([[10.0, -2.0], [10.0, 3.0]]),), np.zeros((0, 2)), 10.0)
    rows, columns = np.nonzero((np.array(paint(boxes_of(), road, mount)) == PAINT).all(axis=2))
    ends = np.array([[9.925, 3.0, 0.0], [10.075, -2.0, 0.0]])
    pixels, _ = project(ends, mount.intrinsic, mount.extrinsic)
    np.testing.assert_allclose([columns.min(), columns.max() + 1], np.sort(pixels[:, 0]), atol=1.5)
    np.testing.assert_allclose([rows.min(), rows.max() + 1], np.sort(pixels[:, 1]), atol=1.5)


def frames_of(snapshot: Snapshot, *times: float) -> list[np.ndarray]:
    front = render_cameras(snapshot, TINY_RIG, times)[0]
    assert front.times.tolist() == list(times)
    return [np.array(Image.open(io.BytesIO(frame))) for frame in front.frames]


def test_earlier_frames_show_boxes_and_the_ego_where_they_were() -> None:
    moving = boxes_of(("car", [15.0, 9.0, 4.5, 1.9, 1.6, 0.3, 4.0, -3.0]))
    speed, yaw_rate, before = 8.0, -0.8, 0.8
    earlier, _ = frames_of(Snapshot("straight", 0, NO_ROAD, moving, speed, yaw_rate), -before, 0.0)
    x = y = heading = 0.0
    steps = 20_000  # drive backwards, far finer than needed
    for _ in range(steps):
        heading -= yaw_rate * before / steps
        x, y = x - speed * math.cos(heading) * before / steps, y - speed * math.sin(heading) * before / steps
    place = np.array([15.0 - 4.0 * before - x, 9.0 + 3.0 * before - y])
    turned = [
        math.cos(heading) * place[0] + math.sin(heading) * place[1],
        math.cos(heading) * place[1] - math.sin(heading) * place[0],
    ]
    then = boxes_of(("car", [*turned, 4.5, 1.9, 1.6, 0.3 - heading]))
    expected = paint(then, NO_ROAD, FRONT)
    assert painted(then, FRONT).sum() > 50
    assert (earlier != np.array(expected)).any(axis=2).sum() <= 2


def test_pictures_are_the_same_bytes_each_time_and_of_the_cameras_size() -> None:
    first, again = (generate_scene(5, "cut_in").cameras for _ in range(2))
    assert [camera.frames for camera in first] == [camera.frames for camera in again]
    for camera in first:
        assert Image.open(io.BytesIO(camera.frames[0])).size == (camera.width, camera.height)
    assert len({camera.frames for camera in first}) == 3
