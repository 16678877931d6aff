"""Closed-loop scores of other simulators: Bench2Drive, HUGSIM, AlpaSim, and AlpaGym's reward.

Sources: Bench2Drive `tools/merge_route_json.py` and `leaderboard/utils/statistics_manager.py` (commit 7ec25d1); HUGSIM
`sim/utils/score_calculator.py` (62c690d); AlpaSim `src/eval` (3032e0c); AlpaGym `alpagym_runtime/rewards` (85ed1f5).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from framework.scene.types import FloatArray

PENALTIES = {
    "pedestrian_collision": 0.5,
    "vehicle_collision": 0.6,
    "static_collision": 0.65,
    "red_light": 0.7,
    "stop_sign": 0.8,
    "scenario_timeout": 0.7,
    "no_yield": 0.7,
}
"""Bench2Drive's factor of each infraction."""
ROUTES = 220
"""Routes of Bench2Drive: one without a result counts 0."""
ENOUGH_PROGRESS = 0.8
"""The share of the recorded path from which AlpaSim's progress is full."""
SHORT_M = 5.0
"""AlpaSim's scene score does not judge the progress of a shorter recording (m)."""


@dataclass(frozen=True, slots=True)
class Route:
    """What became of a route of Bench2Drive."""

    completion: float
    """The share of the route that was driven, 0 to 1."""
    infractions: Mapping[str, int] = field(default_factory=dict)
    """How often each of `PENALTIES` happened."""
    off_lane: float = 0.0
    """The share of the route that was driven outside of its lanes."""
    completed: bool = False
    """Whether the route was driven to its end."""
    low_speed: int = 0
    """Infractions of the least speed, which cost nothing."""


def driving_score(route: Route) -> float:
    """Bench2Drive's driving score of a route, 0 to 1. Raises `ValueError` for an infraction that there is not."""
    if unknown := sorted(set(route.infractions) - set(PENALTIES)):
        raise ValueError(f"infractions {unknown}: unknown; there are {', '.join(PENALTIES)}")
    penalty = float(np.prod([PENALTIES[name] ** count for name, count in route.infractions.items()]))
    return route.completion * penalty * (1.0 - route.off_lane)


def is_success(route: Route) -> bool:
    """Whether a route was completed without any infraction but those of speed."""
    return route.completed and not any(route.infractions.values()) and route.off_lane == 0.0


def bench2drive(routes: Sequence[Route], count: int = ROUTES) -> dict[str, float]:
    """Driving score and success rate over `count` routes, of which those without a result count 0.

    Raises `ValueError` for more results than routes.
    """
    if len(routes) > count:
        raise ValueError(f"{len(routes)} results of {count} routes; give each route once")
    return {
        "driving_score": sum(map(driving_score, routes)) / count,
        "success": sum(map(is_success, routes)) / count,
    }


def hugsim_score(frames: FloatArray, completion: float) -> float:
    """HUGSIM's HD-Score, 0 to 1.

    Args:
        frames: `(n, 4)`: no collision, drivable area, time to collision, comfort, each 0 to 1.
        completion: The route's completion; more than 1 counts as 1.
    """
    collision, drivable, time, comfort = np.asarray(frames, dtype=np.float64).T
    return float((collision * drivable * (5 * time + 2 * comfort) / 7).mean() * min(completion, 1.0))


def scene_score(progress: float, at_fault: bool, off_road: bool, recorded_m: float) -> float:
    """AlpaSim's score of a scene, 0 to 1.

    Args:
        progress: The share of the recorded path that was driven before the first collision or road departure.
        at_fault: Whether the ego's front or side hit anybody.
        off_road: Whether the ego left the road.
        recorded_m: Length of the recorded path.
    """
    if at_fault or off_road:
        return 0.0
    return 1.0 if recorded_m < SHORT_M else min(max(progress, 0.0) / ENOUGH_PROGRESS, 1.0)


def path_progress(position: FloatArray, path: FloatArray) -> float:
    """Where on the `path` `(n, 2)` a `position` `(2,)` lies, as a share of its length: the nearest point's, 0 to 1."""
    steps = np.diff(path, axis=0)
    lengths = np.hypot(*steps.T)
    total = lengths.sum()
    if total == 0:
        return 1.0
    share = ((position - path[:-1]) * steps).sum(axis=1) / np.where(lengths > 0, lengths**2, 1.0)
    nearest = path[:-1] + np.clip(share, 0, 1)[:, None] * steps
    best = int(np.argmin(np.hypot(*(nearest - position).T)))
    return float((lengths[:best].sum() + np.clip(share[best], 0, 1) * lengths[best]) / total)


def distance_to_recording(driven: FloatArray, times: FloatArray, recorded: FloatArray, stamps: FloatArray) -> float:
    """AlpaGym's `distance_to_gt` (m): the RMSE of driven positions `(n, 2)` at `times` `(n,)` against the recording
    `(m, 2)` at `stamps` `(m,)` (s), linear in between, over the time that both cover. 0 where they share none.
    """
    shared = (times >= stamps[0]) & (times <= stamps[-1])
    if not shared.any():
        return 0.0
    expected = np.stack([np.interp(times[shared], stamps, recorded[:, k]) for k in (0, 1)], axis=1)
    return float(np.sqrt(((driven[shared] - expected) ** 2).sum(axis=1).mean()))


def alpagym_reward(progress: float, collision: bool, off_road: bool, distance_m: float) -> float:
    """AlpaGym's reward of an episode by its preset `progress_safety`: progress - 10 collision - 5 off road - distance /
    100. Nothing is cut after a collision.
    """
    return progress - 10.0 * collision - 5.0 * off_road - 0.01 * distance_m
