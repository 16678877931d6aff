"""Roads of the built-in world: centrelines, lanes, painted markings and drivable polygons, in a world frame of their
own (m, rad)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from framework.scene.types import FloatArray

STEP = 0.5
"""Spacing (m) of a path's samples."""
BEHIND, AHEAD = 80.0, 190.0
"""How far (m) a road runs before and after the station where the ego's scenario begins."""
KERB_RADIUS = 5.0


class Path:
    """A planar curve by arc length. `table` is `(k, 4)`: x, y, heading (unwrapped), curvature, every `STEP` metres."""

    def __init__(self, points: FloatArray):
        arc = np.concatenate([[0.0], np.cumsum(np.hypot(*np.diff(points, axis=0).T))])
        grid = np.arange(0.0, arc[-1], STEP)
        x, y = np.interp(grid, arc, points[:, 0]), np.interp(grid, arc, points[:, 1])
        heading = np.unwrap(np.arctan2(np.gradient(y), np.gradient(x)))
        curvature = np.convolve(np.gradient(heading) / STEP, np.ones(5) / 5.0, mode="same")
        self.table = np.stack([x, y, heading, curvature], axis=1)
        self.length = float(grid[-1])
        self._rows: list[list[float]] = self.table.tolist()

    def at(self, station: FloatArray | float, offset: FloatArray | float = 0.0) -> FloatArray:
        """Rows `(..., 4)` x, y, heading, curvature at `station` (m along) and `offset` (m to the left); straight
        beyond the ends."""
        if isinstance(station, float) and isinstance(offset, float):
            return self._at_one(station, offset)
        position = np.asarray(station) / STEP
        index = np.minimum(np.maximum(position.astype(np.int64), 0), len(self.table) - 2)
        before = self.table[index]
        rows: FloatArray = before + (position - index)[..., None] * (self.table[index + 1] - before)
        rows[..., 0] -= offset * np.sin(rows[..., 2])
        rows[..., 1] += offset * np.cos(rows[..., 2])
        return rows

    def _at_one(self, station: float, offset: float) -> FloatArray:
        """`at` for one station, without the overhead of arrays: the driver asks for many of them."""
        position = station / STEP
        index = min(max(int(position), 0), len(self._rows) - 2)
        part, before, after = position - index, self._rows[index], self._rows[index + 1]
        x, y, heading, curvature = (b + part * (a - b) for b, a in zip(before, after, strict=True))
        return np.array([x - offset * math.sin(heading), y + offset * math.cos(heading), heading, curvature])

    def project(self, point: FloatArray, near: float) -> tuple[float, float]:
        """Station and offset (m) of a point `(2,)`, searched from the station `near`."""
        x, y, station = float(point[0]), float(point[1]), float(near)
        for _ in range(5):
            px, py, heading, _ = self._at_one(station, 0.0).tolist()
            along = (x - px) * math.cos(heading) + (y - py) * math.sin(heading)
            station += along
            if abs(along) < 1e-3:
                break
        return station, (y - py) * math.cos(heading) - (x - px) * math.sin(heading)

    def shifted(self, offset: float, *, backwards: bool = False) -> Path:
        """The parallel curve `offset` metres to the left, driven the other way when `backwards`."""
        points = self.at(np.arange(len(self.table)) * STEP, offset)[:, :2]
        return Path(points[::-1] if backwards else points)


@dataclass(frozen=True, slots=True)
class Layout:
    """A road with the ego's place on it."""

    route: Path
    """The ego's centreline."""
    start: float
    """The station on the route where scenarios begin (m)."""
    oncoming: Path
    """The lane that runs the other way."""
    drivable: tuple[FloatArray, ...]
    """Polygons `(k, 2)` of the drivable surface (m)."""
    markings: tuple[FloatArray, ...]
    """Polylines of the lane markings (m)."""
    speed_limit: float
    """The speed limit (m/s)."""
    lane_width: float
    """The width of a lane (m)."""
    room: tuple[float, float]
    """From the route's centreline to the left and right edge of the drivable surface (m)."""
    neighbour: Path | None = None
    """The lane next to the ego's own in its direction; None on a road with one."""
    neighbour_side: int = 0
    """The side of that lane: +1 left, -1 right."""
    crossing: tuple[Path, ...] = ()
    """The lanes of a crossing road: from the left, from the right."""
    junction: float | None = None
    """The station on the route where the middle of the crossing is (m)."""
    stop_line: float | None = None
    """The station of the stop line on the route (m)."""


def straight_road(rng: np.random.Generator, *, lanes: int | None = None) -> Layout:
    """A straight road with one or two lanes in each direction."""
    return _road(rng, np.zeros(round((BEHIND + AHEAD) / STEP)), float(rng.uniform(8.0, 15.0)), lanes)


def curved_road(rng: np.random.Generator) -> Layout:
    """A road that bends once: a clothoid in, a circle of 25 to 120 m radius, a clothoid out."""
    radius = float(np.exp(rng.uniform(np.log(25.0), np.log(120.0))))
    sign = float(rng.choice([-1.0, 1.0]))
    begin, ramp = BEHIND + rng.uniform(-10.0, 60.0), rng.uniform(12.0, 20.0)
    hold = min(rng.uniform(25.0, 90.0), 1.6 * radius)
    station = np.arange(0.0, BEHIND + AHEAD, STEP)
    knots = (begin, begin + ramp, begin + ramp + hold, begin + 2.0 * ramp + hold)
    curvature = np.interp(station, knots, (0.0, sign / radius, sign / radius, 0.0))
    return _road(rng, curvature, float(rng.uniform(9.0, 14.0)), None)


def intersection(rng: np.random.Generator, command: str) -> Layout:
    """Two roads with one lane each way that cross at a right angle; the route goes "left", "right" or "straight"
    over it.

    The ego comes from the south; the world's origin is the crossing's middle.
    """
    width, shoulder = float(rng.uniform(3.4, 3.9)), float(rng.uniform(0.5, 1.2))
    lane, edge = width / 2.0, width + shoulder
    reach = AHEAD
    approach = edge + KERB_RADIUS + 1.0
    distance = {"left": edge + 2.0 * lane + 2.5, "right": edge + KERB_RADIUS, "straight": 0.0}[command]
    points = _turn(lane, command, distance, reach)
    route = Path(points)
    stop = reach - approach - 4.0
    drivable = (
        np.array([[-edge, -reach], [edge, -reach], [edge, reach], [-edge, reach]]),
        np.array([[-reach, -edge], [reach, -edge], [reach, edge], [-reach, edge]]),
        *(_kerb(edge, sx, sy) for sx in (-1.0, 1.0) for sy in (-1.0, 1.0)),
    )
    arms = [np.array([[0.0, -reach], [0.0, -approach]]) @ _quarter(k) for k in range(4)]
    edges = [
        np.array([[s * width, -reach], [s * width, -approach]]) @ _quarter(k) for k in range(4) for s in (-1.0, 1.0)
    ]
    stops = [np.array([[0.0, -approach], [width, -approach]]) @ _quarter(k) for k in range(4)]
    crossing = (
        Path(np.array([[-reach, -lane], [reach, -lane]])),
        Path(np.array([[reach, lane], [-reach, lane]])),
    )
    return Layout(
        route=route,
        start=stop,
        oncoming=Path(np.array([[-lane, reach], [-lane, -reach]])),
        drivable=drivable,
        markings=tuple(arms + edges + stops),
        speed_limit=float(rng.uniform(8.0, 13.0)),
        lane_width=width,
        room=(edge + lane, edge - lane),
        crossing=crossing,
        junction=reach,
        stop_line=stop,
    )


def _road(rng: np.random.Generator, curvature: FloatArray, speed_limit: float, lanes: int | None) -> Layout:
    """A road along a reference line of the given `curvature` profile, which separates the two directions."""
    width, shoulder = float(rng.uniform(3.3, 3.8)), float(rng.uniform(0.5, 1.5))
    lanes = int(rng.integers(1, 3)) if lanes is None else lanes
    own = int(rng.integers(0, lanes))
    heading = np.concatenate([[0.0], np.cumsum(curvature[:-1] + curvature[1:]) * STEP / 2.0])
    step = STEP * np.stack([np.cos(heading), np.sin(heading)], axis=1)
    reference = Path(np.concatenate([[[0.0, 0.0]], np.cumsum(step, axis=0)[:-1]]))
    edge = lanes * width + shoulder
    stations = np.arange(0.0, reference.length, 2.0)
    left, right = reference.at(stations, edge)[:, :2], reference.at(stations, -edge)[:, :2]
    solid = [reference.at(stations, s * d)[:, :2] for s, d in ((1.0, 0.0), (1.0, lanes * width), (-1.0, lanes * width))]
    dashes = [
        reference.at(np.array([begin, begin + 3.0]), side * width)[:, :2]
        for side in (-1.0, 1.0)
        for begin in np.arange(0.0, reference.length - 3.0, 9.0)
    ]
    offset = -(own + 0.5) * width
    route = reference.shifted(offset)
    side = 1 if own == 1 else -1
    return Layout(
        route=route,
        start=route.project(reference.at(BEHIND)[:2], BEHIND)[0],
        oncoming=reference.shifted(width / 2.0, backwards=True),
        drivable=(np.concatenate([right, left[::-1]]),),
        markings=tuple(solid + (dashes if lanes == 2 else [])),
        speed_limit=speed_limit,
        lane_width=width,
        room=(edge - offset, edge + offset),
        neighbour=reference.shifted(offset + side * width) if lanes == 2 else None,
        neighbour_side=side if lanes == 2 else 0,
    )


def _turn(lane: float, command: str, distance: float, reach: float) -> FloatArray:
    """Points of a route that comes up the lane x = `lane` and leaves on the right-hand lane of the arm that
    `command` names.

    The turn is a circle that begins `distance` metres before the middle of the lane it turns into.
    """
    if command == "straight":
        return np.array([[lane, -reach], [lane, reach]])
    sign = 1.0 if command == "left" else -1.0
    target = sign * lane
    begin = -distance
    radius = target - begin
    angle = np.linspace(0.0, np.pi / 2.0, 60)
    x = lane - sign * radius * (1.0 - np.cos(angle))
    y = begin + radius * np.sin(angle)
    last = np.array([[-sign * reach, target]])
    return np.concatenate([[[lane, -reach]], np.stack([x, y], axis=1), last])


def _kerb(edge: float, sx: float, sy: float) -> FloatArray:
    """The rounded corner of a crossing: the square next to it, less the quarter disc of the pavement."""
    angle = np.linspace(0.0, np.pi / 2.0, 8)
    arc = edge + KERB_RADIUS * (1.0 - np.stack([np.cos(angle), np.sin(angle)], axis=1))
    inner, outer = edge - 0.5, edge + KERB_RADIUS
    return np.concatenate([[[inner, inner], [inner, outer]], arc, [[outer, inner]]]) * (sx, sy)


def _quarter(turns: int) -> FloatArray:
    """Right-multiplied rotation of row vectors by `turns` quarter turns."""
    return np.linalg.matrix_power(np.array([[0.0, 1.0], [-1.0, 0.0]]), turns)
