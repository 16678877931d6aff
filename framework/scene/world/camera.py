"""Cameras of the built-in world: ground, road and markings as perspective polygons, boxes ray by ray, exactly."""

from __future__ import annotations

import dataclasses
import io
import math
from collections.abc import Iterable, Sequence
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw

from framework.scene.frames import apply, box_corners, invert, project, rigid, yaw_rotation
from framework.scene.types import Boxes, Camera, FloatArray
from framework.scene.video import encode_clip
from framework.scene.world.rays import enter_box
from framework.scene.world.rig import CameraMount, Rig
from framework.scene.world.state import Road, Snapshot

NEAR_M = 0.3
"""Nothing nearer to the camera than this is drawn."""
HORIZON_M = 5000.0
"""How far the grass reaches: less than a pixel short of the horizon."""
MARKING_WIDTH_M = 0.15
THINNEST_PIXELS = 0.25
"""Markings end where they would look thinner than this; the painter would show them a whole pixel wide."""
GUARD_PIXELS = 2.0
"""Polygons are clipped this far outside the image, so that the cut edges themselves are never seen."""

Colour = tuple[int, int, int]
SKY, GRASS, ASPHALT, PAINT = (150, 190, 230), (96, 128, 80), (84, 84, 90), (235, 235, 225)
COLOURS: dict[str, Colour] = {
    "car": (200, 40, 40),
    "truck": (60, 90, 200),
    "bus": (230, 170, 30),
    "trailer": (150, 150, 160),
    "construction_vehicle": (250, 200, 0),
    "pedestrian": (240, 120, 200),
    "motorcycle": (150, 60, 220),
    "bicycle": (60, 200, 200),
    "traffic_cone": (255, 110, 0),
    "barrier": (250, 250, 250),
    "animal": (120, 72, 30),
    "debris": (40, 30, 30),
    "hose": (255, 230, 120),
}
SHADES = np.array([0.6, 0.9, 0.75, 0.8, 0.4, 1.0])
"""Brightness of a box's rear, front, right, left, bottom and top: which way it faces can be seen."""


def render_cameras(snapshot: Snapshot, rig: Rig, times: tuple[float, ...] = (0.0,)) -> tuple[Camera, ...]:
    """What each camera of `rig` sees, as PNG: a still, or a clip of one frame per entry of `times`.

    `times` are seconds, oldest first, 0 now. Earlier frames move boxes back at their velocities and the ego along the
    arc of its speed and yaw rate.
    """
    moments = [(_boxes_at(snapshot.boxes, time), _ego_at(snapshot, time)) for time in times]
    return tuple(
        Camera(
            name=mount.name,
            frames=tuple(_encode(paint(boxes, snapshot.road, mount, ego)) for boxes, ego in moments),
            times=np.array(times),
            intrinsic=mount.intrinsic,
            extrinsic=mount.extrinsic,
            width=mount.width,
            height=mount.height,
        )
        for mount in rig.cameras
    )


def film_cameras(
    road: Road, rig: Rig, moments: Sequence[tuple[Boxes, FloatArray]], rate_hz: float
) -> tuple[Camera, ...]:
    """What each camera of `rig` saw, as one encoded clip of a frame per entry of `moments`, `rate_hz` a second.

    A moment is where everybody else was and the ego's pose `(4, 4)`, both in the ego's present frame; the last is now.
    """
    times = np.arange(1 - len(moments), 1) / rate_hz
    return tuple(
        Camera(
            name=mount.name,
            frames=(),
            times=times,
            intrinsic=mount.intrinsic,
            extrinsic=mount.extrinsic,
            width=mount.width,
            height=mount.height,
            clip=encode_clip([paint(boxes, road, mount, ego) for boxes, ego in moments], rate_hz),
        )
        for mount in rig.cameras
    )


def paint(boxes: Boxes, road: Road, mount: CameraMount, ego: FloatArray | None = None) -> Image.Image:
    """One RGB image: sky, ground, drivable surface, markings, and of the boxes whatever is nearest in each pixel.

    `boxes` and `road` share a frame; `ego` `(4, 4)` says where the ego is in it (at its origin when None).
    """
    extrinsic = mount.extrinsic if ego is None else ego @ mount.extrinsic
    image = Image.new("RGB", (mount.width, mount.height), SKY)
    _paint_ground(ImageDraw.Draw(image), road, mount, extrinsic)
    if not len(boxes):
        return image
    pixels = np.array(image)
    _paint_boxes(pixels, boxes, mount, extrinsic)
    return Image.fromarray(pixels)


def _paint_ground(canvas: ImageDraw.ImageDraw, road: Road, mount: CameraMount, extrinsic: FloatArray) -> None:
    camera_from_ego = invert(extrinsic)

    def place(rings: FloatArray) -> FloatArray:
        flat = np.concatenate([rings, np.zeros((*rings.shape[:-1], 1))], axis=-1)
        return apply(camera_from_ego, flat)

    grass = np.array([[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]]) * HORIZON_M + extrinsic[:2, 3]
    _fill(canvas, [place(grass)], mount, GRASS)
    _fill(canvas, [place(ring) for ring in road.drivable], mount, ASPHALT)
    thinnest = mount.intrinsic[0, 0] * MARKING_WIDTH_M / THINNEST_PIXELS
    _fill(canvas, place(_stripes(road.markings)), mount, PAINT, thinnest)


def _fill(
    canvas: ImageDraw.ImageDraw,
    rings: Iterable[FloatArray],
    mount: CameraMount,
    colour: Colour,
    farthest: float = math.inf,
) -> None:
    """Paint polygons `(k, 3)` in the camera's frame, as far as `farthest` metres of depth."""
    planes = _frustum(mount, farthest)
    for ring in rings:
        seen = clip_polygon(ring, planes)
        if len(seen):
            corners = np.floor((seen @ mount.intrinsic.T)[:, :2] / seen[:, 2:])
            canvas.polygon(corners.ravel().tolist(), fill=colour)


def _paint_boxes(pixels: FloatArray, boxes: Boxes, mount: CameraMount, extrinsic: FloatArray) -> None:
    """Paint into `pixels` `(height, width, 3)` the nearest box along the ray through each pixel's centre."""
    rays = _rays(mount) @ extrinsic[:3, :3].T
    depth = np.full(pixels.shape[:2], np.inf)
    corners = box_corners(boxes.values)
    for box, label, ring in zip(boxes.values, boxes.labels, corners, strict=True):
        window = _window(ring, mount, extrinsic)
        enter, face = enter_box(extrinsic[:3, 3], rays[window].reshape(-1, 3), box)
        shape = depth[window].shape
        enter, face = enter.reshape(shape), face.reshape(shape)
        nearer = (enter >= NEAR_M) & (enter < depth[window])
        depth[window][nearer] = enter[nearer]
        pixels[window][nearer] = SHADES[face[nearer], None] * np.array(COLOURS[label])


def _window(corners: FloatArray, mount: CameraMount, extrinsic: FloatArray) -> tuple[slice, slice]:
    """Rows and columns that a box with `corners` `(8, 3)` can be seen in: all when it reaches behind the camera."""
    places, depth = project(corners, mount.intrinsic, extrinsic)
    if depth.max() < NEAR_M:
        return slice(0), slice(0)
    if depth.min() < NEAR_M:
        return slice(None), slice(None)
    size = np.array([mount.width, mount.height])
    low = np.clip(np.floor(places.min(axis=0)), 0, size).astype(int)
    high = np.clip(np.ceil(places.max(axis=0)), 0, size).astype(int)
    return slice(low[1], high[1]), slice(low[0], high[0])


@lru_cache(maxsize=32)
def _rays(mount: CameraMount) -> FloatArray:
    """Rays through the pixels' centres in the camera's frame, `(height, width, 3)`; z is 1, so multiples are depths."""
    columns, rows = np.meshgrid(np.arange(mount.width) + 0.5, np.arange(mount.height) + 0.5)
    return np.stack([columns, rows, np.ones_like(rows)], axis=-1) @ np.linalg.inv(mount.intrinsic).T


@lru_cache(maxsize=64)
def _frustum(mount: CameraMount, farthest: float) -> FloatArray:
    """Half-spaces `(6, 4)` of what the camera sees: (x, y, z, 1) is inside when its products with all are >= 0."""
    focal, right, bottom = mount.intrinsic[0, 0], mount.width / 2 + GUARD_PIXELS, mount.height / 2 + GUARD_PIXELS
    return np.array(
        [
            [0.0, 0.0, 1.0, -NEAR_M],
            [0.0, 0.0, -1.0, farthest],
            [focal, 0.0, right, 0.0],
            [-focal, 0.0, right, 0.0],
            [0.0, focal, bottom, 0.0],
            [0.0, -focal, bottom, 0.0],
        ]
    )


def clip_polygon(ring: FloatArray, planes: FloatArray) -> FloatArray:
    """The part of a polygon `(k, 3)` inside the half-spaces `planes` `(p, 4)`, `(m, 3)`, empty when none is.

    Sutherland and Hodgman 1974; parts of a concave polygon stay joined by edges along the planes.
    """
    sides = ring @ planes[:, :3].T + planes[:, 3]
    if (sides < 0).all(axis=0).any():
        return np.empty((0, 3))
    for plane in planes[(sides < 0).any(axis=0)]:
        side = ring @ plane[:3] + plane[3]
        inside, following = side >= 0, np.roll(side, -1)
        crossing = inside != (following >= 0)
        share = np.divide(side, side - following, out=np.zeros_like(side), where=crossing)
        cuts = ring + share[:, None] * (np.roll(ring, -1, axis=0) - ring)
        both = np.stack([ring, cuts], axis=1).reshape(-1, 3)
        ring = both[np.stack([inside, crossing], axis=1).ravel()]
    return ring


def _stripes(lines: tuple[FloatArray, ...]) -> FloatArray:
    """Painted quadrilaterals `(n, 4, 2)` along polylines `(k, 2)`."""
    start = np.concatenate([np.empty((0, 2)), *(line[:-1] for line in lines)])
    end = np.concatenate([np.empty((0, 2)), *(line[1:] for line in lines)])
    along = end - start
    across = np.stack([-along[:, 1], along[:, 0]], axis=1) * (MARKING_WIDTH_M / 2)
    across /= np.maximum(np.linalg.norm(along, axis=1, keepdims=True), 1e-6)
    return np.stack([start + across, end + across, end - across, start - across], axis=1)


def _boxes_at(boxes: Boxes, time: float) -> Boxes:
    """The boxes at `time`, moved at their velocities (not at all where these are unknown), in the present frame."""
    values = np.array(boxes.values)
    values[:, :2] += np.nan_to_num(values[:, 7:9]) * time
    return dataclasses.replace(boxes, values=values)


def _ego_at(snapshot: Snapshot, time: float) -> FloatArray:
    """Pose `(4, 4)` of the ego at `time` in the present ego frame: along a circle's arc, whose chord turns by half."""
    turned = snapshot.ego_yaw_rate * time
    chord = snapshot.ego_speed * time * np.sinc(turned / 2 / math.pi)
    return rigid(yaw_rotation(turned), chord * np.array([math.cos(turned / 2), math.sin(turned / 2), 0.0]))


def _encode(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()
