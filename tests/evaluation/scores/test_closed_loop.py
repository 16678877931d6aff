"""Scores of other simulators, worked out on paper from their formulas."""

from __future__ import annotations

import numpy as np
import pytest

from framework.evaluation.scores.closed_loop import (
    Route,
    alpagym_reward,
    bench2drive,
    distance_to_recording,
    driving_score,
    hugsim_score,
    is_success,
    path_progress,
    scene_score,
)


def test_bench2drive_multiplies_penalties_and_counts_missing_routes_as_zero() -> None:
    clean = Route(1.0, completed=True, low_speed=3)
    hit = Route(0.8, {"vehicle_collision": 2, "red_light": 1}, off_lane=0.1)
    assert driving_score(clean) == 1.0
    assert driving_score(hit) == pytest.approx(0.8 * 0.6**2 * 0.7 * 0.9)
    assert [is_success(clean), is_success(hit), is_success(Route(1.0))] == [True, False, False]
    assert not is_success(Route(1.0, {"stop_sign": 1}, completed=True))
    scores = bench2drive([clean, hit], count=4)
    assert scores == {"driving_score": pytest.approx((1 + driving_score(hit)) / 4), "success": 0.25}
    with pytest.raises(ValueError, match=r"\['dent'\]: unknown; there are pedestrian_collision"):
        driving_score(Route(1.0, {"dent": 1}))
    with pytest.raises(ValueError, match="3 results of 2 routes"):
        bench2drive([clean] * 3, count=2)


def test_hugsim_averages_frames_times_completion() -> None:
    frames = np.array([[1, 1, 1, 1], [1, 1, 0, 1], [0, 1, 1, 1], [1, 0, 1, 1]], dtype=float)
    assert hugsim_score(frames, 0.5) == pytest.approx((1 + 2 / 7) / 4 * 0.5)
    assert hugsim_score(frames[:1], 1.2) == 1.0


def test_alpasim_scores_progress_up_to_four_fifths_and_nothing_after_a_fault() -> None:
    assert scene_score(0.4, False, False, 100.0) == 0.5
    assert scene_score(0.9, False, False, 100.0) == 1.0
    assert scene_score(0.9, True, False, 100.0) == scene_score(0.9, False, True, 100.0) == 0.0
    assert scene_score(0.0, False, False, 4.9) == 1.0
    assert scene_score(-0.2, False, False, 50.0) == 0.0


def test_alpagym_rewards_progress_and_punishes_collisions_and_distance() -> None:
    assert alpagym_reward(0.7, False, False, 2.0) == pytest.approx(0.68)
    assert alpagym_reward(0.7, True, True, 0.0) == pytest.approx(-14.3)


def test_progress_is_where_the_nearest_point_of_the_path_lies() -> None:
    path = np.array([[0.0, 0.0], [10.0, 0.0], [10.0, 0.0], [10.0, 10.0]])
    assert path_progress(np.array([5.0, 3.0]), path) == 0.25
    assert path_progress(np.array([11.0, 5.0]), path) == 0.75
    assert path_progress(np.array([-4.0, 0.0]), path) == 0.0
    assert path_progress(np.array([10.0, 99.0]), path) == 1.0
    assert path_progress(np.zeros(2), np.zeros((3, 2))) == 1.0


def test_distance_is_over_the_time_that_both_cover() -> None:
    recorded, stamps = np.array([[0.0, 0.0], [10.0, 0.0]]), np.array([0.0, 1.0])
    driven, times = np.array([[0.0, 3.0], [5.0, 4.0], [99.0, 99.0]]), np.array([0.0, 0.5, 2.0])
    assert distance_to_recording(driven, times, recorded, stamps) == pytest.approx(np.sqrt((9 + 16) / 2))
    assert distance_to_recording(driven, times + 9, recorded, stamps) == 0.0
