"""Cameras of the built-in world: a painter's perspective of ground, road, markings and boxes, with exact geometry."""

from __future__ import annotations

import dataclasses
import io
import math
from collections.abc import Iterator

import numpy as np
from PIL import Image, ImageDraw

from framework.scene.frames import apply, box_corners, invert, rigid, transform_boxes, yaw_rotation
from framework.scene.types import Boxes, Camera, FloatArray
from framework.scene.world.rig import CameraMount, Rig
from framework.scene.world.state import Road, Snapshot

NEAR_M = 0.3
"""Nothing nearer to the camera than this is drawn."""

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
FACES = ((0, 1, 2, 3), (4, 5, 6, 7), (0, 1, 5, 4), (1, 2, 6, 5), (2, 3, 7, 6), (3, 0, 4, 7))
"""Corners of a box's faces, in `box_corners`' order."""
SHADES = (0.5, 1.0, 0.8, 0.65, 0.8, 0.9)


def render_cameras(snapshot: Snapshot, rig: Rig, times: tuple[float, ...] = (0.0,)) -> tuple[Camera, ...]:
    """What each camera of `rig` sees, as PNG: a still, or a clip of one frame per entry of `times` (s, oldest first, 0 is now).

    Earlier frames move boxes back by their velocities and the ego by its speed and yaw rate.
    """
    moments = [_moment(snapshot, time) for time in times]
    return tuple(
        Camera(
            name=mount.name,
            frames=tuple(_encode(paint(boxes, road, mount)) for boxes, road in moments),
            times=np.array(times),
            intrinsic=mount.intrinsic,
            extrinsic=mount.extrinsic,
            width=mount.width,
            height=mount.height,
        )
        for mount in rig.cameras
    )


def paint(boxes: Boxes, road: Road, mount: CameraMount) -> Image.Image:
    """One image: sky, ground, drivable surface, markings, then boxes from far to near."""
    image = Image.new("RGB", (mount.width, mount.height), SKY)
    canvas = ImageDraw.Draw(image)
    horizon = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * 500.0
    camera_from_ego = invert(mount.extrinsic)
    for colour, ring in [(GRASS, horizon), *((ASPHALT, ring) for ring in road.drivable)]:
        _fill(canvas, apply(camera_from_ego, _on_ground(ring)), mount, colour)
    for line in road.markings:
        for quad in _stripes(line):
            _fill(canvas, apply(camera_from_ego, _on_ground(quad)), mount, PAINT)
    if len(boxes):
        corners = apply(camera_from_ego, box_corners(boxes.values))
        for index in np.argsort(-np.linalg.norm(corners.mean(axis=1), axis=1), kind="stable"):
            _box(canvas, corners[index], mount, COLOURS[boxes.labels[index]])
    return image


def _box(canvas: ImageDraw.ImageDraw, corners: FloatArray, mount: CameraMount, colour: Colour) -> None:
    centre = corners.mean(axis=0)
    for face, shade in zip(FACES, SHADES, strict=True):
        ring = corners[list(face)]
        outward = ring.mean(axis=0) - centre
        if outward @ ring.mean(axis=0) < 0:  # faces the camera, which sits at the origin
            _fill(canvas, ring, mount, (int(colour[0] * shade), int(colour[1] * shade), int(colour[2] * shade)))


def _fill(canvas: ImageDraw.ImageDraw, ring: FloatArray, mount: CameraMount, colour: Colour) -> None:
    """Paint a polygon `(k, 3)` in the camera's frame, clipped at the near plane."""
    clipped = clip_near(ring)
    if len(clipped) < 3:
        return
    pixels = (clipped @ mount.intrinsic.T)[:, :2] / clipped[:, 2:]
    far = 20.0 * mount.width  # far outside the image nothing changes, but the painter's integers overflow
    canvas.polygon([(x - 0.5, y - 0.5) for x, y in np.clip(pixels, -far, far)], fill=colour)


def clip_near(ring: FloatArray) -> FloatArray:
    """The part of a polygon `(k, 3)` with z >= `NEAR_M` (Sutherland and Hodgman 1974), `(m, 3)`."""
    kept: list[FloatArray] = []
    for start, end in zip(ring, np.roll(ring, -1, axis=0), strict=True):
        if start[2] >= NEAR_M:
            kept.append(start)
        if (start[2] >= NEAR_M) != (end[2] >= NEAR_M):
            kept.append(start + (end - start) * (NEAR_M - start[2]) / (end[2] - start[2]))
    return np.array(kept).reshape(-1, 3)


def _stripes(line: FloatArray, width: float = 0.15) -> Iterator[FloatArray]:
    for start, end in zip(line[:-1], line[1:], strict=True):
        along = end - start
        across = np.array([-along[1], along[0]]) / max(float(np.hypot(*along)), 1e-6) * width / 2
        yield np.stack([start + across, end + across, end - across, start - across])


def _on_ground(points: FloatArray) -> FloatArray:
    return np.concatenate([points, np.zeros((len(points), 1))], axis=1)


def _moment(snapshot: Snapshot, time: float) -> tuple[Boxes, Road]:
    """Boxes and road at `time`, in the ego frame of that time."""
    if time == 0.0:
        return snapshot.boxes, snapshot.road
    values = np.array(snapshot.boxes.values)
    values[:, :2] += np.nan_to_num(values[:, 7:9]) * time
    turned, speed = snapshot.ego_yaw_rate * time, snapshot.ego_speed
    ahead = speed * time * np.sinc(turned / 2 / math.pi)
    then = rigid(yaw_rotation(turned), np.array([ahead * math.cos(turned / 2), ahead * math.sin(turned / 2), 0.0]))
    to_then = invert(then)
    drivable = tuple(apply(to_then, _on_ground(ring))[:, :2] for ring in snapshot.road.drivable)
    markings = tuple(apply(to_then, _on_ground(line))[:, :2] for line in snapshot.road.markings)
    boxes = transform_boxes(dataclasses.replace(snapshot.boxes, values=values), to_then)
    return boxes, dataclasses.replace(snapshot.road, drivable=drivable, markings=markings)


def _encode(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()
