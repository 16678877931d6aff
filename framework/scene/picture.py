"""Pictures of a scene for people: from above as SVG, camera images with boxes and paths drawn where they are."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from PIL import Image, ImageDraw

from framework.scene.frames import apply, box_corners, footprints, invert
from framework.scene.image import read_image
from framework.scene.kinematics import EGO
from framework.scene.lens import project
from framework.scene.types import Boxes, Camera, FloatArray, Lidar, Scene
from framework.scene.video import decode_clip

NEAR = 0.2
"""Depth (m) in front of a camera before which nothing is drawn."""
PIECES = 16
"""Straight pieces in which a segment is drawn that a lens bends."""
EDGES = ((0, 1), (1, 2), (2, 3), (3, 0), (4, 5), (5, 6), (6, 7), (7, 4), (0, 4), (1, 5), (2, 6), (3, 7))
"""Pairs of a box's corners, in the order of `box_corners`; the first corner pair of each ring is the front's."""
MANY = 5
"""Lines of graded widths; more would cover the scene."""
ROAD, ROUTE, POINTS, EGO_FILL = "#e6eaf0", "#b4bcc9", "#7d899b", "#1d2733"
PALE = "#fffbe6"


@dataclass(frozen=True, slots=True)
class View:
    """The part of the ground that a bird's-eye view shows (m, ego frame; forward is up), and its scale (pixels per
    metre).
    """

    behind: float = 12.0
    ahead: float = 62.0
    aside: float = 22.0
    scale: float = 6.0

    @property
    def size(self) -> tuple[float, float]:
        """Width and height in pixels."""
        return 2 * self.aside * self.scale, (self.ahead + self.behind) * self.scale

    def pixels(self, points: FloatArray) -> FloatArray:
        """Pixels `(n, 2)` of ground points `(n, 2+)`."""
        return np.stack([self.aside - points[:, 1], self.ahead - points[:, 0]], axis=1) * self.scale

    def shows(self, points: FloatArray) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
        """Which of `points` `(n, 2+)` lie inside."""
        x, y = points[:, 0], points[:, 1]
        return np.asarray((-self.behind < x) & (x < self.ahead) & (np.abs(y) < self.aside))


def view_of(paths: Iterable[FloatArray]) -> View:
    """A view that shows the paths `(time, 2+)` to their ends."""
    points = np.concatenate([path[:, :2] for path in paths])
    return View(ahead=float(np.clip(points[:, 0].max(initial=0.0) + 12.0, 45.0, 120.0)))


def birds_eye(
    scene: Scene,
    paths: Mapping[str, tuple[str, FloatArray]],
    boxes: Sequence[tuple[str, Boxes]] = (),
    view: View | None = None,
) -> str:
    """The scene from above as an SVG element: road, route, LiDAR, `boxes`, the ego, and `paths` on top.

    `paths` maps a name to its colour and its positions `(time, 2+)` (m), the first drawn widest, so that those below
    others still show. `boxes` come in their colours, the first filled.
    """
    view = view or view_of([states for _, states in paths.values()] or [np.zeros((1, 2))])
    width, height = view.size
    parts = [
        f'<svg class="birds-eye" xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" role="img" '
        f'aria-label="{escape(scene.id, quote=True)} from above">',
        f'<rect width="{width:.0f}" height="{height:.0f}" fill="#fbfcfd"/>',
    ]
    around = scene.surroundings
    if around is not None:
        parts += [_polygon(view, polygon, fill=ROAD) for polygon in around.drivable]
        if around.route is not None and len(around.route) > 1:
            parts.append(_line(view, around.route, ROUTE, 1.5, 'stroke-dasharray="7 6"'))
    for layer, (colour, group) in enumerate(boxes):
        style = f'fill="{PALE if layer == 0 else "none"}" stroke="{colour}"'
        parts += [_box(view, row, label, style) for row, label in zip(group.values, group.labels, strict=True)]
    if scene.lidar is not None:
        parts.append(_dots(view, scene.lidar))
    ego = np.array([[EGO.centre, 0.0, 0.0, EGO.length, EGO.width, EGO.height, 0.0]])
    parts.append(_polygon(view, footprints(ego)[0], fill=EGO_FILL))
    for (name, (colour, states)), stroke in zip(paths.items(), _strokes(len(paths), 1.8), strict=True):
        parts.append(_path(view, np.concatenate([np.zeros((1, 2)), states[:, :2]]), colour, stroke, name))
    return "".join([*parts, _ruler(view), "</svg>"])


def draw_on_camera(
    camera: Camera,
    boxes: Sequence[tuple[str, Boxes]] = (),
    paths: Sequence[tuple[str, FloatArray]] = (),
    width: int = 640,
    image: Image.Image | None = None,
) -> bytes:
    """The camera's newest frame, or an `image` of it at another size, as JPEG, `width` pixels wide, with `boxes` and
    ground `paths` `(time, 2+)` in their colours.

    A box's front face is crossed. What lies behind the camera is cut off, not mirrored.
    """
    scale = width / camera.width
    resampling = Image.Resampling.LANCZOS if image is None or image.width > width else Image.Resampling.NEAREST
    image = (image or _newest(camera)).convert("RGB").resize((width, round(camera.height * scale)), resampling)
    canvas, stroke = ImageDraw.Draw(image), max(1, round(width / 320))
    for colour, group in boxes:
        _segments(canvas, camera, box_segments(group), scale, colour, stroke)
    for (colour, states), wide in zip(paths, _strokes(len(paths), stroke), strict=True):
        _segments(canvas, camera, path_segments(states), scale, colour, round(wide))
    encoded = io.BytesIO()
    image.save(encoded, format="JPEG", quality=86)
    return encoded.getvalue()


def box_segments(boxes: Boxes) -> FloatArray:
    """The edges of boxes and the crosses of their fronts, `(n * 14, 2, 3)`."""
    ends = [*EDGES, (0, 7), (3, 4)]
    corners = box_corners(np.asarray(boxes.values, dtype=np.float64))
    segments: FloatArray = corners[:, ends].reshape(-1, 2, 3)
    return segments


def path_segments(states: FloatArray) -> FloatArray:
    """A path on the ground from the ego through `states` `(time, 2+)`: `(time, 2, 3)`."""
    ground = np.concatenate([np.zeros((1, 3)), np.c_[states[:, :2], np.zeros(len(states))]])
    return np.stack([ground[:-1], ground[1:]], axis=1)


def visible_segments(camera: Camera, segments: FloatArray) -> FloatArray:
    """Pixels `(m, 2, 2)` of those parts of ego-frame `segments` `(n, 2, 3)` that lie more than `NEAR` ahead of the
    camera. A lens bends them: they come in `PIECES`, of which those are left out that it does not see.
    """
    if camera.lens is not None:
        share = np.linspace(0.0, 1.0, PIECES + 1)[:, None]
        points = segments[:, None, 0] + share * (segments[:, None, 1] - segments[:, None, 0])
        pixels = project(camera, points.reshape(-1, 3)).reshape(len(segments), PIECES + 1, 2)
        pieces = np.stack([pixels[:, :-1], pixels[:, 1:]], axis=2).reshape(-1, 2, 2)
        seen: FloatArray = pieces[np.isfinite(pieces).all(axis=(1, 2))]
        return seen
    ends = apply(invert(camera.extrinsic), segments)
    ends = ends[(ends[..., 2] > NEAR).any(axis=1)]
    depth = ends[..., 2]
    span = depth[:, 1] - depth[:, 0]
    at = (NEAR - depth[:, 0]) / np.where(span == 0, 1.0, span)
    cut = ends[:, 0] + at[:, None] * (ends[:, 1] - ends[:, 0])
    ends = np.where((depth <= NEAR)[..., None], cut[:, None], ends)
    pixels = ends @ camera.intrinsic.T
    shown: FloatArray = pixels[..., :2] / pixels[..., 2:]
    return shown


def _newest(camera: Camera) -> Image.Image:
    if camera.clip is not None:
        return decode_clip(camera.clip, frames=[len(camera.times) - 1])[0]
    return read_image(camera.frames[-1])


def _segments(
    canvas: ImageDraw.ImageDraw, camera: Camera, segments: FloatArray, scale: float, colour: str, width: int
) -> None:
    # Ends far outside the image are legal but overflow the rasteriser.
    for (ax, ay), (bx, by) in np.clip(visible_segments(camera, segments) * scale, -1e5, 1e5):
        canvas.line([(ax, ay), (bx, by)], fill=colour, width=width)


def _coordinates(view: View, points: FloatArray) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in view.pixels(points))


def _polygon(view: View, points: FloatArray, fill: str) -> str:
    return f'<polygon points="{_coordinates(view, points)}" fill="{fill}"/>'


def _line(view: View, points: FloatArray, colour: str, width: float, extra: str = "") -> str:
    shape = f'points="{_coordinates(view, points)}" fill="none"'
    return f'<polyline {shape} stroke="{colour}" stroke-width="{width}" {extra}/>'


def _box(view: View, row: FloatArray, label: str, style: str) -> str:
    """A footprint with a stroke from its centre to its front."""
    corners = footprints(row[None])[0]
    nose = np.stack([row[:2], (corners[0] + corners[3]) / 2])
    return (
        f'<g {style} stroke-width="1.6"><title>{escape(label)}</title><polygon points="{_coordinates(view, corners)}"/>'
        f'<polyline points="{_coordinates(view, nose)}"/></g>'
    )


def _strokes(count: int, thinnest: float) -> list[float]:
    """Widths of lines that may lie on each other, the widest first. Of many, the first alone is wide."""
    if count > MANY:
        return [2.4 * thinnest, *[thinnest] * (count - 1)]
    return [thinnest * (1.0 + 0.7 * (count - 1 - index)) for index in range(count)]


def _path(view: View, points: FloatArray, colour: str, stroke: float, name: str) -> str:
    """A line with a dot at its end."""
    (x, y), line = view.pixels(points[-1:])[0], _line(view, points, colour, stroke, 'stroke-linejoin="round"')
    end = f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{stroke + 1.2:.1f}" fill="{colour}"/>'
    return f"<g><title>{escape(name)}</title>{line}{end}</g>"


def _dots(view: View, lidar: Lidar, most: int = 1500) -> str:
    """LiDAR returns above the ground, thinned to `most`, as one path of dots."""
    points = apply(lidar.extrinsic, np.asarray(lidar.points[:, :3], dtype=np.float64))
    points = points[view.shows(points) & (points[:, 2] > 0.25)]
    points = points[:: max(1, len(points) // most)]
    marks = "".join(f"M{x:.1f} {y:.1f}h0" for x, y in view.pixels(points))
    return f'<path d="{marks}" stroke="{POINTS}" stroke-width="2" stroke-linecap="round"/>'


def _ruler(view: View) -> str:
    """Ten metres, bottom left."""
    y = view.size[1] - 12
    return (
        f'<path d="M12 {y:.0f}h{10 * view.scale:.0f}" stroke="#7b8798" stroke-width="1.5"/>'
        f'<text x="12" y="{y - 5:.0f}" font-size="11" fill="#7b8798">10 m</text>'
    )
