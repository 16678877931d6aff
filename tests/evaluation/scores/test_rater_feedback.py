"""The rater feedback score against what Waymo's own code (waymo-open-dataset, rater_feedback_utils.py) gave."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from framework.evaluation.scores.rater_feedback import (
    leaderboard_score,
    rater_feedback_score,
    weighted_feedback_score,
)
from framework.scene.types import FloatArray


def straight(ahead: float = 0.0, left: float = 0.0, speed: float = 20.0) -> FloatArray:
    """20 positions at 4 Hz of driving straight, moved."""
    times = 0.25 * np.arange(1, 21)
    return np.stack([speed * times + ahead, np.full(20, left)], axis=1)


BETWEEN = [straight(left=1.5), straight(left=-1.5)]


@pytest.mark.parametrize(
    ("plan", "raters", "scores", "speed", "expected"),
    [
        (straight(), [straight()], [8.0], 20.0, 8.0),
        (straight(), [straight()], [2.0], 20.0, 2.0),
        (straight(left=2.0), [straight()], [10.0], 20.0, 4.3713),
        (straight(left=4.0), [straight()], [10.0], 20.0, 4.0),
        (straight(ahead=5.0), [straight()], [10.0], 20.0, 7.8117),
        (straight(), BETWEEN, [10.0, 6.0], 20.0, 6.5811),
        (straight(left=0.6, speed=0.0), [straight(speed=0.0)], [7.0], 0.0, 5.7084),
    ],
)
def test_scores_are_those_of_waymos_code(
    plan: FloatArray, raters: list[FloatArray], scores: list[float], speed: float, expected: float
) -> None:
    assert rater_feedback_score(plan, raters, scores, speed) == pytest.approx(expected, abs=5e-5)


def arc(speed: float, acceleration: float, curvature: float, left: float, points: int = 20) -> FloatArray:
    """Positions at 4 Hz of an arc, as the vectors were made."""
    speeds = np.maximum(speed + acceleration * 0.25 * np.arange(1, points + 1), 0)
    headings = curvature * 0.25 * np.cumsum(speeds)
    steps = 0.25 * np.stack([speeds * np.cos(headings), speeds * np.sin(headings)], axis=1)
    return np.cumsum(steps, axis=0) + np.array([0.0, left])


def test_scores_of_many_plans_are_those_of_waymos_code() -> None:
    cases = json.loads((Path(__file__).parent / "rater_feedback.json").read_text())["cases"]
    gaps = []
    for case in cases:
        plans = np.stack([arc(*plan) for plan in case["plans"]])
        raters = [arc(*rater) for rater in case["raters"]]
        score = weighted_feedback_score(plans, np.array(case["probabilities"]), raters, case["scores"], case["speed"])
        gaps.append(abs(score - case["expected"]))
    print(f"\n{len(gaps)} plans, largest difference {max(gaps):.1e}")
    assert max(gaps) < 1e-9


def test_a_short_rater_stays_at_its_end_and_a_long_one_is_cut() -> None:
    stopped = np.concatenate([straight()[:4], np.repeat(straight()[3:4], 16, axis=0)])
    assert rater_feedback_score(stopped, [straight()[:4]], [9.0], 20.0) == 9.0
    longer = np.concatenate([straight(), straight()[-1:] + 50.0])
    assert rater_feedback_score(straight(), [longer], [9.0], 20.0) == 9.0


def test_several_plans_are_weighted_and_clusters_count_alike() -> None:
    plans = np.stack([straight(), straight(left=4.0)])
    assert weighted_feedback_score(plans, np.array([0.75, 0.25]), [straight()], [8.0], 20.0) == pytest.approx(7.0)
    assert leaderboard_score([8.0, 6.0, 2.0], ["debris", "debris", "cut_in"]) == pytest.approx(4.5)


def test_what_cannot_be_scored_is_refused() -> None:
    with pytest.raises(ValueError, match="0 rater trajectories"):
        rater_feedback_score(straight(), [], [], 20.0)
    with pytest.raises(ValueError, match=r"shape \(19, 2\)"):
        rater_feedback_score(straight()[:19], [straight()], [1.0], 20.0)
    with pytest.raises(ValueError, match="finite"):
        rater_feedback_score(straight(left=np.nan), [straight()], [1.0], 20.0)
    with pytest.raises(ValueError, match=r"-1.*leave out trajectories without a score"):
        rater_feedback_score(straight(), [straight()] * 2, [1.0, -1], 20.0)
