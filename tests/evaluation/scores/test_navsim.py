"""NAVSIM's scores against NAVSIM's own code: `navsim.json` holds what it computed, and says how."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from framework.evaluation.scores.navsim import (
    driving_direction,
    ego_progress,
    epdms,
    extended_comfort,
    history_comfort,
    human_filtered,
    lane_keeping,
    pdms,
    second_stage_weights,
    two_stage_score,
)
from framework.evaluation.scores.tracking import COLUMNS, at_tenths, track
from framework.scene.types import FloatArray

PARTS = {"no_collision": 1.0, "drivable_area": 1.0, "driving_direction": 1.0, "traffic_light": 1.0, "progress": 0.8,
         "time_to_collision": 1.0, "lane_keeping": 1.0, "history_comfort": 0.0, "extended_comfort": 1.0}  # fmt: skip


@pytest.fixture(scope="module")
def oracle() -> dict[str, Any]:
    vectors: dict[str, Any] = json.loads((Path(__file__).parent / "navsim.json").read_text())
    assert vectors["columns"] == list(COLUMNS)
    return vectors


@pytest.fixture(scope="module")
def tracked(oracle: dict[str, Any]) -> list[FloatArray]:
    return [track(np.array(case["poses"])[None], np.array(case["initial"]))[0] for case in oracle["cases"]]


def test_plans_are_tracked_as_navsim_tracks_them(oracle: dict[str, Any], tracked: list[FloatArray]) -> None:
    gaps = [
        np.abs(ours[:: oracle["every"]] - np.array(case["states"])).max()
        for ours, case in zip(tracked, oracle["cases"], strict=True)
    ]
    print(f"\n{len(gaps)} plans, largest difference {max(gaps):.1e}")
    assert max(gaps) < 1e-7


def test_comfort_is_judged_as_navsim_judges_it(oracle: dict[str, Any], tracked: list[FloatArray]) -> None:
    ours = [history_comfort(states[None])[0].tolist() for states in tracked]
    assert ours == [case["comfort"] for case in oracle["cases"]]
    behind = [history_comfort(states[None], tracked[0][:14])[0].tolist() for states in tracked]
    assert behind == [case["comfort_behind_first"] for case in oracle["cases"]]
    assert {value for row in ours for value in row} == {True, False}


@pytest.mark.slow
def test_extended_comfort_is_judged_as_navsim_judges_it(oracle: dict[str, Any], tracked: list[FloatArray]) -> None:
    pairs = itertools.pairwise(tracked)
    assert [bool(extended_comfort(a[None], b[None])[0]) for a, b in pairs] == oracle["extended_comfort_of_neighbours"]
    delayed = [np.concatenate([np.repeat(a[:1], 5, axis=0), a])[:41] for a in tracked]
    found = [bool(extended_comfort(a[None], b[None])[0]) for a, b in zip(tracked, delayed, strict=True)]
    assert found == oracle["extended_comfort_of_delayed"]


def test_second_stage_weights_are_navsims(oracle: dict[str, Any]) -> None:
    for each in oracle["weights"]:
        weights = second_stage_weights(np.array(each["end"]), np.array(each["starts"]))
        np.testing.assert_allclose(weights, each["weights"], atol=1e-12)


def test_parts_are_weighed_by_the_published_formulas() -> None:
    assert epdms(PARTS) == pytest.approx((5 * 0.8 + 5 + 2 + 0 + 2) / 16)
    assert pdms(PARTS) == pytest.approx((5 * 0.8 + 5 + 0) / 12)
    assert epdms(PARTS | {"no_collision": 0.5}) == pytest.approx(0.5 * epdms(PARTS))
    assert epdms(PARTS | {"traffic_light": 0.0}) == 0.0
    with pytest.raises(KeyError):
        epdms({name: 1.0 for name in PARTS if name != "lane_keeping"})


def test_the_human_is_asked_for_no_more_than_the_recording_shows() -> None:
    human = PARTS | {"drivable_area": 0.0, "driving_direction": 0.5, "extended_comfort": 0.0}
    agent = PARTS | {"drivable_area": 0.0, "driving_direction": 0.0, "extended_comfort": 0.0}
    filtered = human_filtered(agent, human)
    assert filtered["drivable_area"] == filtered["history_comfort"] == 1.0
    assert filtered["driving_direction"] == filtered["extended_comfort"] == 0.0


def test_two_stages_are_multiplied_by_moment_and_averaged() -> None:
    second = [np.array([1.0, 0.0]), np.array([0.5, 0.5])]
    weights = [np.array([0.75, 0.25]), np.array([0.5, 0.5])]
    assert two_stage_score([0.8, 0.4], second, weights) == pytest.approx((0.8 * 0.75 + 0.4 * 0.5) / 2)


def test_lane_keeping_ends_after_two_seconds_on_end() -> None:
    off = np.zeros((4, 41))
    off[0, 5:24] = 0.51  # 19 steps
    off[1, 5:25] = 0.51  # 20
    off[2, 5:26] = 0.51
    off[2, 15] = 0.5  # a step on the line begins a new series
    off[3, 5:30] = 0.51
    crossing = np.zeros((4, 41), dtype=bool)
    crossing[3, 10:20] = True  # 15 steps count
    assert lane_keeping(off, crossing).tolist() == [1.0, 0.0, 1.0, 1.0]
    crossing[3, 10:15] = False  # 20 do
    assert lane_keeping(off, crossing).tolist() == [1.0, 0.0, 1.0, 0.0]
    assert lane_keeping(np.full((1, 41), np.nan), crossing[:1]).tolist() == [0.0]


def test_driving_direction_sums_a_second_of_oncoming_way() -> None:
    speeds, centres = np.array([1.7, 1.9, 5.0, 6.0]), np.zeros((4, 41, 2))
    centres[..., 0] = 0.1 * np.arange(41) * speeds[:, None]
    oncoming = np.ones((4, 41), dtype=bool)
    assert driving_direction(centres, oncoming).tolist() == [1.0, 0.5, 0.5, 0.0]  # eleven steps lie in the window
    assert driving_direction(centres, ~oncoming).tolist() == [1.0] * 4
    oncoming[:, 3:] = False
    assert driving_direction(centres, oncoming).tolist() == [1.0, 1.0, 1.0, 1.0]


def test_progress_is_relative_to_the_better_of_agent_and_planner() -> None:
    assert ego_progress(20.0, 1.0, 40.0, 1.0) == 0.5
    assert ego_progress(20.0, 1.0, 40.0, 0.0) == 1.0
    assert ego_progress(20.0, 0.5, 8.0, 1.0) == 1.0
    assert ego_progress(-3.0, 1.0, 40.0, 1.0) == 0.0
    assert ego_progress(1.0, 1.0, 5.0, 1.0) == 1.0


def test_a_plan_at_4_hz_becomes_poses_each_tenth() -> None:
    plan = np.array([[2.0 * k, 0.0, np.pi - 0.1 + 0.05 * k] for k in range(1, 17)])
    poses = at_tenths(plan, 4.0)
    assert poses.shape == (41, 3)
    np.testing.assert_allclose(poses[:, 0], 0.8 * np.arange(41), atol=1e-9)
    assert (np.abs(poses[:, 2]) <= np.pi).all()
