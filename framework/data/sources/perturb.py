"""Plausible variants of recorded scenes: road users and the ego begin elsewhere or drive at other speeds.

What a scene records of the future stays a path that somebody drove; only where and how fast it is driven changes. The
variants are for simulation: raw sensors, which show the recorded moment, do not belong to them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import shapely
from annotated_types import Interval

from framework.scene.drivable import drivable_surface
from framework.scene.frames import wrap_angle
from framework.scene.kinematics import box_footprints, ego_footprints
from framework.scene.types import Boxes, FloatArray, Scene, SceneError, Surroundings, Trajectory

MOVED_M = 2.0
"""Who covers no more than this in the log is parked and stays where it is."""
REJOIN_S = 3.0
"""After this time the expert of a variant drives where, and as fast as, the recorded one does."""
Metres = Annotated[float, Interval(ge=0, le=20)]
Ratio = Annotated[float, Interval(ge=0, lt=1)]


@dataclass(frozen=True, kw_only=True)
class Spread:
    """How far a variant may be from its scene; every quantity is drawn evenly between minus and plus its bound."""

    shift_m: Metres = 6.0
    """Metres by which a road user is moved along its own path."""
    lateral_m: Metres = 0.5
    """Metres by which it drives to the left or right of its path."""
    speed: Ratio = 0.25
    """Share by which it drives faster or slower."""
    ego_lateral_m: Metres = 0.5
    """Metres by which the ego starts to the left or right."""
    ego_speed: Ratio = 0.15
    """Share by which the ego starts faster or slower."""


def perturb(scene: Scene, spread: Spread, rng: np.random.Generator, tries: int = 8) -> Scene:
    """Returns a variant of `scene` without raw sensors, questions and texts. Its annotated boxes are also what a
    perception stack tells, since nothing else shows the others to a policy.

    A change that would make bodies overlap at the start which did not, or put on the road's outside the centre of who
    was on it, is drawn again, `tries` times at most; then the road user, or the ego, stays as recorded. Raises
    `SceneError` for a scene without history, future, boxes or surroundings.
    """
    parts = (scene.history, scene.future, scene.boxes, scene.surroundings)
    for name, part in zip(("history", "future", "boxes", "surroundings"), parts, strict=True):
        if part is None:
            raise SceneError(
                f"scene {scene.id}: field `{name}` is missing; a variant of it cannot be made, leave it out"
            )
    history, future, boxes, around = parts
    assert history is not None
    assert future is not None
    assert boxes is not None
    assert around is not None
    road = drivable_surface(around.drivable) if around.drivable else None
    offset, factor = _ego_start(boxes, road, spread, rng, tries)
    boxes, agents = _others(boxes, around.agents, offset, road, spread, rng, tries)
    moved = _moved_left(boxes, -offset)
    return Scene(
        id=scene.id,
        kind=scene.kind,
        perception=replace(moved, points=None),
        boxes=moved,
        history=_faster(history, factor),
        future=expert_from(future, float(history.states[-1, 3]), offset, factor),
        surroundings=_surroundings(around, agents, -offset),
        command=scene.command,
        provenance=scene.provenance,
    )


def along(path: FloatArray, stations: FloatArray, lateral: float = 0.0) -> FloatArray:
    """Poses `(k, 3)` (x, y, heading) at `stations` `(k,)` (m) of a `path` `(t, 3)`, `lateral` metres to its left.
    Before its start and beyond its end the path goes straight on.
    """
    lengths = np.linalg.norm(np.diff(path[:, :2], axis=0), axis=1)
    known = np.concatenate([[True], lengths > 1e-6])
    covered, heading = np.concatenate([[0.0], lengths.cumsum()])[known], np.unwrap(path[:, 2])[known]
    x, y, turned = (np.interp(stations, covered, values) for values in (path[known, 0], path[known, 1], heading))
    beyond = stations - np.clip(stations, 0.0, covered[-1])
    return np.stack(
        [
            x + beyond * np.cos(turned) - lateral * np.sin(turned),
            y + beyond * np.sin(turned) + lateral * np.cos(turned),
            wrap_angle(turned),
        ],
        axis=-1,
    )


def expert_from(future: Trajectory, speed: float, offset: float, factor: float) -> Trajectory:
    """Returns the expert's future where the ego starts `offset` metres to the left, in the frame there, and with
    `factor` times its `speed` (m/s). Offset and excess of speed vanish within `REJOIN_S`. An ego that does not drive
    off stays aside.
    """
    dt = 1.0 / future.rate_hz
    path = np.concatenate([np.zeros((1, 3)), future.states[:, :3]])
    times = np.arange(len(path)) * dt
    stations = np.concatenate([[0.0], np.linalg.norm(np.diff(path[:, :2], axis=0), axis=1).cumsum()])
    left = np.clip(1.0 - times / REJOIN_S, 0.0, 1.0)
    excess = (factor - 1.0) * speed * REJOIN_S * (1.0 - left**2) / 2  # the integral of the excess of speed
    moving = stations[-1] > MOVED_M
    poses = along(path, np.maximum.accumulate(np.maximum(stations + excess, 0.0))) if moving else path
    smooth = left * left * (3.0 - 2.0 * left) if moving else np.ones(len(path))
    places = poses[:, :2] + (smooth - 1.0)[:, None] * offset * np.array([0.0, 1.0])
    steps = np.diff(places, axis=0)
    distance = np.linalg.norm(steps, axis=1)
    drift = np.arctan2(np.diff(smooth) * offset, np.maximum(distance, 0.1)) * np.cos(poses[1:, 2])
    headings = wrap_angle(poses[1:, 2] + drift)
    speeds = np.maximum(future.states[:, 3] + (factor - 1.0) * speed * left[1:], 0.0) if moving else future.states[:, 3]
    return Trajectory(np.column_stack([places[1:], headings, speeds]), future.rate_hz)


def _ego_start(boxes: Boxes, road: Any, spread: Spread, rng: np.random.Generator, tries: int) -> tuple[float, float]:
    """How far to the left the ego starts, and the factor of its speed."""
    bodies = shapely.polygons(box_footprints(_ground(boxes.values)))
    touched = shapely.intersects(_ego_at(0.0), bodies)
    for _ in range(tries):
        offset, factor = rng.uniform(-1, 1, 2) * (spread.ego_lateral_m, spread.ego_speed) + (0.0, 1.0)
        body = _ego_at(offset)
        on_road = road is None or not road.contains(_ego_at(0.0)) or road.contains(body)
        if on_road and not (shapely.intersects(body, bodies) & ~touched).any():
            return float(offset), float(factor)
    return 0.0, 1.0


def _others(
    boxes: Boxes, agents: FloatArray, ego: float, road: Any, spread: Spread, rng: np.random.Generator, tries: int
) -> tuple[Boxes, FloatArray]:
    """The boxes and their future poses `(n, time, 3)`, in the recorded frame; the ego starts `ego` metres aside."""
    values, agents = np.array(boxes.values, dtype=np.float64), np.array(agents, dtype=np.float64)
    bodies = [_ego_at(ego), *shapely.polygons(box_footprints(_ground(values)))]
    for row in range(len(values)):
        path = np.concatenate([values[row : row + 1, [0, 1, 6]], agents[row]])
        known = np.isfinite(path).all(axis=1)
        covered = np.linalg.norm(np.diff(path[known, :2], axis=0), axis=1).sum()
        if covered <= MOVED_M:
            continue
        others = bodies[: row + 1] + bodies[row + 2 :]
        touched = shapely.intersects(bodies[row + 1], others)
        within = road is not None and road.contains(bodies[row + 1].centroid)
        for _ in range(tries):
            shift, lateral, faster = rng.uniform(-1, 1, 3) * (spread.shift_m, spread.lateral_m, spread.speed)
            poses = _driven(path, known, shift, lateral, 1.0 + faster)
            body = shapely.polygons(box_footprints(np.concatenate([poses[0], values[row, 3:5]])[None]))[0]
            if within and not road.contains(body.centroid):
                continue
            if not (shapely.intersects(body, others) & ~touched).any():
                turned, (vx, vy) = poses[0, 2] - values[row, 6], values[row, 7:9] * (1.0 + faster)
                cos, sin = np.cos(turned), np.sin(turned)
                values[row, [0, 1, 6]], agents[row], bodies[row + 1] = poses[0], poses[1:], body
                values[row, 7:9] = cos * vx - sin * vy, sin * vx + cos * vy
                break
    return replace(boxes, values=values, points=None), agents


def _driven(path: FloatArray, known: npt.NDArray[np.bool_], shift: float, lateral: float, factor: float) -> FloatArray:
    """The poses of a road user that begins `shift` metres further on its `path` `(t, 3)` and drives `factor` times as
    fast; NaN where it is not `known`.
    """
    stations = np.concatenate([[0.0], np.linalg.norm(np.diff(path[known, :2], axis=0), axis=1).cumsum()])
    poses = np.full(path.shape, np.nan)
    poses[known] = along(path[known], shift + factor * stations, lateral)
    return poses


def _ego_at(offset: float) -> Any:
    """The ego's body (a polygon), so far to the left of the origin."""
    return shapely.polygons(ego_footprints(np.array([[0.0, offset, 0.0]])))[0]


def _ground(values: FloatArray) -> FloatArray:
    return np.asarray(values[:, [0, 1, 6, 3, 4]])


def _faster(history: Trajectory, factor: float) -> Trajectory:
    """The ego's past, driven `factor` times as fast."""
    return Trajectory(history.states * np.array([factor, factor, 1.0, factor]), history.rate_hz)


def _moved_left(boxes: Boxes, offset: float) -> Boxes:
    values = np.array(boxes.values)
    values[:, 1] += offset
    return replace(boxes, values=values)


def _surroundings(around: Surroundings, agents: FloatArray, offset: float) -> Surroundings:
    """The surroundings with other futures of the `agents`, moved `offset` metres to the left."""
    lights = around.red_lights

    def moved(points: Sequence[FloatArray]) -> list[FloatArray]:
        left = np.array([0.0, offset, 0.0])
        return [each + left[: each.shape[-1]] for each in points]

    route = around.route
    return replace(
        around,
        agents=moved([agents])[0],
        drivable=tuple(moved(around.drivable)),
        route=None if route is None else moved([route])[0],
        red_lights=None if lights is None else lights + np.array([0.0, offset, 0.0, offset, 0.0, 0.0]),
        distant=None if around.distant is None else _moved_left(around.distant, offset),
        distant_agents=None if around.distant_agents is None else moved([around.distant_agents])[0],
    )
