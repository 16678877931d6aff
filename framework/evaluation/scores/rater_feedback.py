"""The rater feedback score of Waymo's end-to-end driving challenge (WOD-E2E, 2025).

Source: waymo-open-dataset, `metrics/python/rater_feedback_utils.py`. Positions are of the rear axle, x forward and y
left, at 4 Hz from 0.25 s on.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from framework.scene.types import FloatArray

STEPS = 20
"""Positions of a trajectory: 5 s."""
JUDGED = (11, 19)
"""The positions that are judged: those of 3 and 5 s."""
LATERAL_M, LONGITUDINAL_M = (1.0, 1.8), (4.0, 7.2)
"""Distances (m) within which a plan is a rater's, at these times, for a fast ego."""
DECAY = 0.1
"""Factor of the score for each further such distance."""
FLOOR = 4.0
"""The lowest score of a plan that no rater's trajectory holds."""


def rater_feedback_score(
    plan: FloatArray, raters: Sequence[FloatArray], scores: Sequence[float], speed: float
) -> float:
    """The score of one plan, 0 to 10.

    Args:
        plan: `(20, 2)` (m).
        raters: The raters' trajectories, each `(n, 2)` (m); a shorter one stays at its end, a longer one is cut.
        scores: Their scores, 0 to 10.
        speed: The ego's current speed (m/s).

    Raises `ValueError` without raters, for a score out of range (Waymo writes -1 where there is none), and for a plan
    of another shape or that is not finite.
    """
    if not raters or len(raters) != len(scores):
        raise ValueError(f"{len(raters)} rater trajectories with {len(scores)} scores; give at least one, and as many")
    if not all(0 <= score <= 10 for score in scores):
        raise ValueError(f"rater scores {list(scores)}: not all from 0 to 10; leave out trajectories without a score")
    if plan.shape != (STEPS, 2) or not np.isfinite(plan).all():
        raise ValueError(f"a plan of shape {plan.shape}; give ({STEPS}, 2) finite numbers, at 4 Hz from 0.25 s on")
    paths = np.stack([_whole(np.asarray(rater, dtype=np.float64)) for rater in raters])
    along = _directions(paths)[:, JUDGED]
    aside = np.stack([-along[..., 1], along[..., 0]], axis=-1)
    away = (plan - paths)[:, JUDGED]
    scale = np.clip(0.5 + 0.5 * (speed - 1.4) / 9.6, 0.5, 1.0)
    lateral = np.abs((away * aside).sum(axis=-1)) / (scale * np.array(LATERAL_M))
    longitudinal = np.abs((away * along).sum(axis=-1)) / (scale * np.array(LONGITUDINAL_M))
    distance = np.maximum(lateral, longitudinal)
    values = np.asarray(scores, dtype=np.float64)[:, None] * DECAY ** np.maximum(distance - 1.0, 0.0)
    score = float(values.max(axis=0).mean())
    held = bool((distance <= 1.0).all(axis=1).any())
    return score if held else max(FLOOR, score)


def weighted_feedback_score(
    plans: FloatArray, probabilities: FloatArray, raters: Sequence[FloatArray], scores: Sequence[float], speed: float
) -> float:
    """The score of several `plans` `(k, 20, 2)`, weighted by their probabilities `(k,)`."""
    each = np.array([rater_feedback_score(plan, raters, scores, speed) for plan in plans])
    return float((each * probabilities).sum() / np.sum(probabilities))


def leaderboard_score(scores: Sequence[float], clusters: Sequence[str]) -> float:
    """The mean over the clusters of scenarios of each cluster's mean score."""
    means = [np.mean([s for s, c in zip(scores, clusters, strict=True) if c == name]) for name in sorted(set(clusters))]
    return float(np.mean(means))


def _whole(path: FloatArray) -> FloatArray:
    """A rater's trajectory with all of its positions."""
    return np.concatenate([path[:STEPS], np.repeat(path[-1:], max(0, STEPS - len(path)), axis=0)])


def _directions(paths: FloatArray) -> FloatArray:
    """Unit vectors `(r, t, 2)` of the steps of `paths`, the first from the origin; one that stands keeps the last."""
    steps = np.diff(np.concatenate([np.zeros_like(paths[:, :1]), paths], axis=1), axis=1)
    last = np.tile([1.0, 0.0], (len(paths), 1))
    directions = np.empty_like(steps)
    for time in range(steps.shape[1]):
        length = np.hypot(*steps[:, time].T)[:, None]
        last = np.where(length == 0, last, steps[:, time] / np.where(length == 0, 1.0, length))
        directions[:, time] = last
    return directions
