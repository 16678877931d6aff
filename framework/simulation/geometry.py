"""Geometry of the ground plane on tensors, batched over any leading dimensions: corners of boxes, points in polygons,
projection onto polylines. For contact between boxes, see `framework.scene.contact`.
"""

from __future__ import annotations

import torch
from torch import Tensor


def direction(heading: Tensor) -> Tensor:
    """Unit vectors `(..., 2)` of headings `(...)`."""
    return torch.stack([heading.cos(), heading.sin()], dim=-1)


def corners(boxes: Tensor) -> Tensor:
    """Corners `(..., 4, 2)` of `boxes`, counter-clockwise from front left."""
    ahead = direction(boxes[..., 2])
    along = ahead * boxes[..., 3:4] / 2
    lateral = torch.stack([-ahead[..., 1], ahead[..., 0]], dim=-1) * boxes[..., 4:5] / 2
    centre = boxes[..., :2]
    return torch.stack([centre + s * along + t * lateral for s, t in ((1, 1), (-1, 1), (-1, -1), (1, -1))], dim=-2)


def inside(points: Tensor, edges: Tensor) -> Tensor:
    """Which of `points` `(b, m, 2)` lie within the surface bounded by `edges` `(b, e, 4)` (x, y, x, y): bool `(b, m)`.

    Even-odd rule: a ray to the right crosses the boundary an odd number of times. Rings must not overlap; holes are
    rings. Edges of zero length (padding) are never crossed.
    """
    x, y = points[..., None, 0], points[..., None, 1]
    x0, y0, x1, y1 = (edges[:, None, :, k] for k in range(4))
    upwards = y1 > y0
    straddles = (y0 > y) != (y1 > y)
    side = (x1 - x0) * (y - y0) - (x - x0) * (y1 - y0)
    crosses = straddles & ((side > 0) == upwards)
    return crosses.sum(dim=-1) % 2 == 1


def project_onto(points: Tensor, lines: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Project `points` `(..., 2)` onto polylines `(..., p, 2)`; leading dimensions broadcast.

    Returns for the nearest place on the line its station (m from the line's start), the point's offset from it (m,
    positive to the left) and the line's heading there, `(...)` each. Repeated vertices (padding) are never nearest; a
    line of zero length has station 0.
    """
    along_x, along_y = lines.diff(dim=-2).unbind(dim=-1)
    square = along_x * along_x + along_y * along_y
    relative_x, relative_y = points[..., 0, None] - lines[..., :-1, 0], points[..., 1, None] - lines[..., :-1, 1]
    fraction = ((relative_x * along_x + relative_y * along_y) / square.clamp(min=1e-12)).clamp(0, 1)
    away_x, away_y = relative_x - fraction * along_x, relative_y - fraction * along_y
    away = torch.where(square > 0, away_x * away_x + away_y * away_y, torch.inf)
    nearest = away.argmin(dim=-1, keepdim=True)

    def at_nearest(values: Tensor) -> Tensor:
        return values.expand_as(away).gather(-1, nearest)[..., 0]

    length = square.sqrt()
    station = at_nearest(length.cumsum(dim=-1) - length) + at_nearest(fraction) * at_nearest(length)
    along, lateral = (at_nearest(along_x), at_nearest(along_y)), (at_nearest(away_x), at_nearest(away_y))
    distance = torch.hypot(*lateral)
    left = along[0] * lateral[1] - along[1] * lateral[0] >= 0
    return station, torch.where(left, distance, -distance), torch.atan2(along[1], along[0])


def crossing(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Where segments `(..., 4)` (x, y, x, y) cross: the fractions (0 to 1) along the first and along the second, NaN
    where they do not cross; `(...)` each, broadcast. Parallel segments never cross.
    """
    x, y, way_x, way_y = _segment(first)
    other_x, other_y, other_way_x, other_way_y = _segment(second)
    offset_x, offset_y = other_x - x, other_y - y
    turn = way_x * other_way_y - way_y * other_way_x
    fraction = (offset_x * other_way_y - offset_y * other_way_x) / turn
    other = (offset_x * way_y - offset_y * way_x) / turn
    meet = (turn != 0) & (fraction >= 0) & (fraction <= 1) & (other >= 0) & (other <= 1)
    return torch.where(meet, fraction, torch.nan), torch.where(meet, other, torch.nan)


def _segment(ends: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A segment's start (x, y) and its extent (x, y)."""
    x, y, end_x, end_y = ends.unbind(dim=-1)
    return x, y, end_x - x, end_y - y
