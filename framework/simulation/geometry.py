"""Geometry of the ground plane on tensors, batched over any leading dimensions: boxes that meet, points in surfaces,
places along lines.

A box is `(..., 5)`: centre x, y (m), heading (rad), length, width (m).
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
    aside = torch.stack([-ahead[..., 1], ahead[..., 0]], dim=-1) * boxes[..., 4:5] / 2
    centre = boxes[..., :2]
    return torch.stack([centre + s * along + t * aside for s, t in ((1, 1), (-1, 1), (-1, -1), (1, -1))], dim=-2)


def approach(first: Tensor, second: Tensor, velocity: Tensor) -> tuple[Tensor, Tensor]:
    """Whether boxes overlap now `(...)`, bool, and in how many seconds they will `(...)`, infinity for never, when
    `second` moves on at the relative `velocity` `(..., 2)` (m/s) and neither turns.

    Separating axes (Gottschalk, Lin and Manocha 1996, "OBBTree"): boxes share some area exactly when their shadows on
    all four normals of their edges do. While they move straight on, each axis says from when until when its shadows
    meet; the boxes meet while all of them do.
    """
    first, second = torch.broadcast_tensors(first, second)
    axes, reach = _axes(first, second)
    gap = (axes * (second - first)[..., None, :2]).sum(dim=-1)
    closing = (axes * velocity[..., None, :]).sum(dim=-1)
    meets = gap.abs() < reach
    pace = torch.where(closing == 0, torch.ones_like(closing), closing)
    still = closing == 0
    never = torch.where(meets, -torch.inf, torch.inf)
    begin = torch.where(still, never, torch.minimum((-gap - reach) / pace, (reach - gap) / pace)).amax(dim=-1)
    end = torch.where(still, -never, torch.maximum((-gap - reach) / pace, (reach - gap) / pace)).amin(dim=-1)
    overlap = meets.all(dim=-1)
    ahead = (begin < end) & (begin >= 0)
    time = torch.where(ahead, begin, torch.full_like(begin, torch.inf))
    return overlap, torch.where(overlap, torch.zeros_like(time), time)


def _axes(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """The normals `(..., 4, 2)` of two boxes' edges, and how far `(..., 4)` from each other centres may be along each
    for the shadows to meet."""
    pair = [direction(box[..., 2]) for box in (first, second)]
    axes = torch.stack([v for u in pair for v in (u, torch.stack([-u[..., 1], u[..., 0]], dim=-1))], dim=-2)
    turn = second[..., 2] - first[..., 2]
    cos, sin = turn.cos().abs(), turn.sin().abs()
    (length, width), (other_length, other_width) = (box[..., 3:].unbind(dim=-1) for box in (first, second))
    sums = [
        length + other_length * cos + other_width * sin,
        width + other_length * sin + other_width * cos,
        other_length + length * cos + width * sin,
        other_width + length * sin + width * cos,
    ]
    return axes, torch.stack(sums, dim=-1) / 2


def inside(points: Tensor, edges: Tensor) -> Tensor:
    """Which of `points` `(b, m, 2)` lie within the surface whose boundary is `edges` `(b, e, 4)` (x, y, x, y), bool
    `(b, m)`.

    Even-odd rule: a ray to the right crosses the boundary an odd number of times. Rings must not overlap, holes are
    rings; edges of no length (padding) are never crossed.
    """
    x, y = points[..., None, 0], points[..., None, 1]
    x0, y0, x1, y1 = (edges[:, None, :, k] for k in range(4))
    upwards = y1 > y0
    straddles = (y0 > y) != (y1 > y)
    side = (x1 - x0) * (y - y0) - (x - x0) * (y1 - y0)
    crosses = straddles & ((side > 0) == upwards)
    return crosses.sum(dim=-1) % 2 == 1


def project(points: Tensor, lines: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Where `points` `(..., 2)` are along polylines `(..., p, 2)`, whose leading dimensions broadcast: the station of
    the nearest place (m from the line's beginning), the offset (m, positive to the left), and the line's heading there;
    `(...)` each.

    Repeated vertices (padding) are never the nearest place; a line of no length has its only place at station 0.
    """
    along_x, along_y = lines.diff(dim=-2).unbind(dim=-1)
    square = along_x * along_x + along_y * along_y
    relative_x, relative_y = points[..., 0, None] - lines[..., :-1, 0], points[..., 1, None] - lines[..., :-1, 1]
    share = ((relative_x * along_x + relative_y * along_y) / square.clamp(min=1e-12)).clamp(0, 1)
    away_x, away_y = relative_x - share * along_x, relative_y - share * along_y
    away = torch.where(square > 0, away_x * away_x + away_y * away_y, torch.inf)
    nearest = away.argmin(dim=-1, keepdim=True)

    def there(values: Tensor) -> Tensor:
        return values.expand_as(away).gather(-1, nearest)[..., 0]

    length = square.sqrt()
    station = there(length.cumsum(dim=-1) - length) + there(share) * there(length)
    along, aside = (there(along_x), there(along_y)), (there(away_x), there(away_y))
    distance = torch.hypot(*aside)
    left = along[0] * aside[1] - along[1] * aside[0] >= 0
    return station, torch.where(left, distance, -distance), torch.atan2(along[1], along[0])


def crossing(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Where segments `(..., 4)` (x, y, x, y) cross: the shares (0 to 1) along the first and along the second, NaN where
    they do not; `(...)` each, broadcast. Parallel segments never cross.
    """
    x, y, way_x, way_y = _segment(first)
    other_x, other_y, other_way_x, other_way_y = _segment(second)
    apart_x, apart_y = other_x - x, other_y - y
    turn = way_x * other_way_y - way_y * other_way_x
    share = (apart_x * other_way_y - apart_y * other_way_x) / turn
    other = (apart_x * way_y - apart_y * way_x) / turn
    meet = (turn != 0) & (share >= 0) & (share <= 1) & (other >= 0) & (other <= 1)
    return torch.where(meet, share, torch.nan), torch.where(meet, other, torch.nan)


def _segment(ends: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A segment's beginning and its way."""
    x, y, end_x, end_y = ends.unbind(dim=-1)
    return x, y, end_x - x, end_y - y
