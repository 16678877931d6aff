"""Contact between moving bodies: whether boxes on the ground overlap, and when they first touch while both move.

Works on numpy and torch, batched over any leading dimensions. A box is `(..., 5)`: centre x, y (m), heading (rad),
length, width (m).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from array_api_compat import array_namespace

from framework.scene.frames import wrap_angle
from framework.scene.kinematics import sinc

PIECES = 64
"""A period is cut into so many pieces, in which the distances of bodies change evenly: at 2 rad/s, 30 m/s and 4 Hz
those of a truck 12 m long are out by 0.4 mm at most."""
SHARPEST_TURN = 1.25
"""A body that turns more (rad) within a period moves straight meanwhile: at 4 Hz nobody drives an arc at 5 rad/s, and
annotations turn bodies about on the spot."""
WINDOW = 4
"""The contact is looked for once more so many pieces before and after, now that the bodies turn."""
SAMPLES = 8
"""And so many times a piece: every 0.5 ms at 4 Hz."""
GRAZE_M = 0.001
"""Bodies nearer than this (m) touch."""
STRAY = math.tan(SHARPEST_TURN / 4) / 2
"""The largest distance of an arc that turns by `SHARPEST_TURN` from its chord, as a fraction of the chord."""


@dataclass(frozen=True, slots=True)
class Motion:
    """Bodies that move through a period at constant yaw rate, on an arc where they turn."""

    before: Any
    """`(..., 5)`: the boxes at the period's start."""
    after: Any
    """`(..., 5)`: the boxes at its end."""
    slowing: Any
    """`(...)`: the speed lost within the period as a fraction of the sum of the speeds at its ends, -1 to 1; it changes
    evenly."""

    def progress(self, time: Any) -> Any:
        """The fraction of the way covered at `time`, both 0 to 1; leading dimensions broadcast."""
        return time + self.slowing * time * (1 - time)

    def at(self, time: Any) -> Any:
        """The boxes `(..., 5)` at `time` `(...)`, a fraction of the period; leading dimensions broadcast."""
        xp = array_namespace(self.before)
        progress = self.progress(time)
        x, y, heading = (self.before[..., k] for k in range(3))
        way_x, way_y = self.after[..., 0] - x, self.after[..., 1] - y
        half = self._arc() / 2
        share = progress * sinc(progress * half) / sinc(half)
        angle = (progress - 1) * half
        cos, sin = share * xp.cos(angle), share * xp.sin(angle)
        x, y, heading = x + cos * way_x - sin * way_y, y + sin * way_x + cos * way_y, heading + progress * self.turn()
        return xp.stack([x, y, heading, *(xp.broadcast_to(self.before[..., k], x.shape) for k in (3, 4))], axis=-1)

    def velocity(self, time: Any) -> Any:
        """The velocities `(..., 2)` (m a period) of the boxes' centres at `time` `(...)`; leading dimensions
        broadcast."""
        xp = array_namespace(self.before)
        way = self.after[..., :2] - self.before[..., :2]
        half = self._arc() / 2
        pace = (1 + self.slowing * (1 - 2 * time)) / sinc(half)
        angle = (2 * self.progress(time) - 1) * half
        cos, sin = pace * xp.cos(angle), pace * xp.sin(angle)
        return xp.stack([cos * way[..., 0] - sin * way[..., 1], sin * way[..., 0] + cos * way[..., 1]], axis=-1)

    def turn(self) -> Any:
        """The angle `(...)` (rad) by which the bodies turn within the period."""
        return wrap_angle(self.after[..., 2] - self.before[..., 2])

    def _arc(self) -> Any:
        """The angle `(...)` by which the way turns: none where bodies turn about on the spot."""
        xp = array_namespace(self.before)
        turn = self.turn()
        return xp.where(xp.abs(turn) > SHARPEST_TURN, xp.zeros_like(turn), turn)

    def select(self, shape: tuple[int, ...], rows: Any) -> Motion:
        """The bodies at `rows`, a mask or index of the arrays broadcast to the leading dimensions `shape`."""
        xp = array_namespace(self.before)
        before, after = (xp.broadcast_to(boxes, (*shape, 5))[rows] for boxes in (self.before, self.after))
        return Motion(before, after, xp.broadcast_to(self.slowing, shape)[rows])


def even_motion(before: Any, after: Any) -> Motion:
    """Motion at constant speed between boxes `(..., 5)`."""
    return Motion(before, after, array_namespace(before).zeros_like(before[..., 0]))


def slowing_motion(before: Any, after: Any, speeds: Any) -> Motion:
    """Motion between boxes `(..., 5)` whose speed changes evenly between the `speeds` `(..., 2)` (m/s) at the period's
    ends; at constant speed where both are 0."""
    xp = array_namespace(speeds)
    speeds = xp.clip(speeds, min=0.0)
    total = speeds[..., 0] + speeds[..., 1]
    standing = total <= 0
    lost = (speeds[..., 0] - speeds[..., 1]) / xp.where(standing, xp.ones_like(total), total)
    return Motion(before, after, xp.where(standing, xp.zeros_like(total), lost))


def first_contact(one: Motion, other: Motion) -> Any:
    """When bodies first touch `(...)`, as a fraction of the period: 0 where they overlap from its start, infinite where
    they never touch. Leading dimensions broadcast; bodies of NaN never touch.

    Pairs that keep apart on coarse bounds are left out. The others are followed over `PIECES` pieces of the period, and
    those that meet over shorter ones about that time; see `_first_touch`.
    """
    xp = array_namespace(one.before, other.before)
    circles = _come_near(one, other)
    shape, near = tuple(circles.shape), xp.zeros_like(circles)
    if bool(xp.any(circles)):
        near[circles] = _may_touch(one.select(shape, circles), other.select(shape, circles))
    contact = xp.full_like(near, xp.inf, dtype=one.before.dtype)
    if not bool(xp.any(near)):
        return contact
    times = xp.arange(PIECES + 1, dtype=contact.dtype, device=getattr(near, "device", None)) / PIECES
    contact[near] = _first_touch(one.select(shape, near), other.select(shape, near), times, 0.0)
    meets = xp.isfinite(contact)
    if bool(xp.any(meets)):
        steps = xp.arange(
            -WINDOW * SAMPLES, WINDOW * SAMPLES + 1, dtype=contact.dtype, device=getattr(near, "device", None)
        )
        times = xp.clip(contact[meets][:, None] + steps / (SAMPLES * PIECES), min=0.0, max=1.0)
        contact[meets] = _first_touch(one.select(shape, meets), other.select(shape, meets), times, GRAZE_M)
    return contact


def overlaps(first: Any, second: Any) -> Any:
    """Whether boxes overlap `(...)`, bool, see `approach`; leading dimensions broadcast. Boxes of NaN overlap none."""
    xp = array_namespace(first, second)
    gap, reach = _projections(first, second)
    return xp.all(xp.abs(gap) < reach, axis=-1)


def approach(first: Any, second: Any, velocity: Any) -> tuple[Any, Any]:
    """Whether boxes overlap now `(...)`, bool, and the time (s) until they do `(...)`, infinite for never, while
    `second` moves at the relative `velocity` `(..., 2)` (m/s) and neither turns. Leading dimensions of the boxes
    broadcast to those of `velocity`.

    Separating axes (Gottschalk, Lin and Manocha 1996, "OBBTree"): boxes overlap exactly when their projections on all
    four edge normals do. In straight motion the projections on each axis overlap during one interval of time; the
    boxes overlap during the intersection of these intervals.
    """
    xp = array_namespace(first, second)
    gap, closing, reach = _projections(first, second, velocity)
    meets = xp.abs(gap) < reach
    still = closing == 0
    rate = xp.where(still, xp.ones_like(closing), closing)
    one, other = (-gap - reach) / rate, (reach - gap) / rate
    never = xp.where(meets, xp.full_like(gap, -xp.inf), xp.full_like(gap, xp.inf))
    begin = xp.max(xp.where(still, never, xp.minimum(one, other)), axis=-1)
    end = xp.min(xp.where(still, -never, xp.maximum(one, other)), axis=-1)
    overlap = xp.all(meets, axis=-1)
    time = xp.where((begin < end) & (begin >= 0), begin, xp.full_like(begin, xp.inf))
    return overlap, xp.where(overlap, xp.zeros_like(time), time)


def _first_touch(one: Motion, other: Motion, times: Any, graze: float) -> Any:
    """When bodies `(q,)` first come nearer than `graze` (m) at `times` `(q, k)` or `(k,)`, infinite for never.

    Bodies are together while their projections on all edge normals are. Between two times, how far these are apart
    changes evenly: straight ways without turns are followed exactly, others to second order. No body passes all of
    another meanwhile: at 200 m/s a piece of 4 ms covers 0.8 m.
    """
    xp = array_namespace(times)
    first, second = (Motion(m.before[:, None], m.after[:, None], m.slowing[:, None]).at(times) for m in (one, other))
    gap, reach = _projections(first, second)
    apart = xp.abs(gap) - reach - graze
    before, after = apart[:, :-1], apart[:, 1:]
    meets, parts = (before >= 0) & (after < 0), (before < 0) & (after >= 0)
    share = before / xp.where(meets | parts, before - after, xp.ones_like(before))
    whole = xp.ones_like(share)
    begin = xp.max(xp.where(meets, share, xp.where(before < 0, 0 * whole, 2 * whole)), axis=-1)
    end = xp.min(xp.where(parts, share, xp.where(after < 0, whole, -whole)), axis=-1)
    met = times[..., :-1] + begin * (times[..., 1:] - times[..., :-1])
    return xp.min(xp.where(begin < end, met, xp.full_like(met, xp.inf)), axis=-1)


def contact_normal(first: Any, second: Any) -> Any:
    """The unit vectors `(..., 2)` from `first` to `second` across the faces where boxes touch: the edge normal on which
    their projections are farthest apart, or overlap least."""
    xp = array_namespace(first, second)
    gap, reach = _projections(first, second)
    axis = xp.argmax(xp.abs(gap) - reach, axis=-1)
    heading = xp.where(axis < 2, first[..., 2], second[..., 2]) + (axis % 2) * (math.pi / 2)
    along = xp.stack([xp.cos(heading), xp.sin(heading)], axis=-1)
    ahead = xp.sum(along * (second - first)[..., :2], axis=-1) >= 0
    return xp.where(ahead[..., None], along, -along)


def _projections(first: Any, second: Any, *velocity: Any) -> tuple[Any, ...]:
    """On each of the four edge normals of two boxes, `(..., 4)`: the distance of the centres, its rate of change where
    the relative `velocity` `(..., 2)` is given, and the distance below which the projections overlap."""
    xp = array_namespace(first, second)
    way = xp.stack([second[..., :2] - first[..., :2], *velocity], axis=-2)
    x, y = way[..., 0], way[..., 1]
    along, aside = [], []
    for heading in (first[..., 2:3], second[..., 2:3]):
        cos, sin = xp.cos(heading), xp.sin(heading)
        along.append(cos * x + sin * y)
        aside.append(cos * y - sin * x)
    axes = xp.stack([along[0], aside[0], along[1], aside[1]], axis=-1)
    turn = second[..., 2] - first[..., 2]
    cos, sin = xp.abs(xp.cos(turn)), xp.abs(xp.sin(turn))
    (length, width), (other_length, other_width) = ((box[..., 3] / 2, box[..., 4] / 2) for box in (first, second))
    sums = [
        length + other_length * cos + other_width * sin,
        width + other_length * sin + other_width * cos,
        other_length + length * cos + width * sin,
        other_width + length * sin + width * cos,
    ]
    return *(axes[..., k, :] for k in range(axes.shape[-2])), xp.stack(sums, axis=-1)


def _come_near(one: Motion, other: Motion) -> Any:
    """Whether `(...)` the circles around two bodies may overlap within the period."""
    xp = array_namespace(one.before, other.before)
    margin = sum(_half_diagonal(motion.before) + _stray(motion) for motion in (one, other))
    start = other.before[..., :2] - one.before[..., :2]
    way = other.after[..., :2] - one.after[..., :2] - start
    square = xp.sum(way * way, axis=-1)
    covered = -xp.sum(start * way, axis=-1) / xp.where(square > 0, square, xp.ones_like(square))
    nearest = start + xp.clip(covered, min=0.0, max=1.0)[..., None] * way
    return xp.sum(nearest * nearest, axis=-1) < margin * margin


def _may_touch(one: Motion, other: Motion) -> Any:
    """Whether `(q,)` boxes that keep their mean headings touch in straight motion, when one of them is grown by all
    that the bodies turn and stray."""
    xp = array_namespace(one.before)
    boxes, margin = [], xp.zeros_like(one.slowing)
    for motion in (one, other):
        turn = motion.turn()
        margin = margin + _stray(motion) + xp.abs(turn) / 2 * _half_diagonal(motion.before)
        heading = motion.before[..., 2] + turn / 2
        boxes.append(xp.concat([motion.before[..., :2], heading[..., None], motion.before[..., 3:]], axis=-1))
    first = xp.concat([boxes[0][..., :3], boxes[0][..., 3:] + 2 * margin[..., None]], axis=-1)
    way = other.after[..., :2] - other.before[..., :2] - one.after[..., :2] + one.before[..., :2]
    _, until = approach(first, boxes[1], way)
    return until <= 1


def _half_diagonal(boxes: Any) -> Any:
    return array_namespace(boxes).hypot(boxes[..., 3], boxes[..., 4]) / 2


def _stray(motion: Motion) -> Any:
    """The largest distance `(...)` of a body from where it would be on a straight way at constant speed."""
    xp = array_namespace(motion.before)
    chord = xp.hypot(motion.after[..., 0] - motion.before[..., 0], motion.after[..., 1] - motion.before[..., 1])
    return chord * (STRAY + xp.abs(motion.slowing) / 4)
