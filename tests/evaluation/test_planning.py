from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from framework.evaluation import planning
from framework.scene.kinematics import Vehicle, ego_footprints, unicycle_rollout
from framework.scene.types import Boxes, SceneError, Surroundings, Trajectory
from tests.evaluation.scenes import make_scene, straight
from tests.fuzzing import fuzz


def test_displacements_of_a_known_offset() -> None:
    expert = straight()
    predicted = expert.copy()
    predicted[:, 1] += np.linspace(0.3, 3.0, 20)
    assert planning.average_displacement(predicted, expert) == pytest.approx(np.linspace(0.3, 3.0, 20).mean())
    assert planning.final_displacement(predicted, expert) == pytest.approx(3.0)
    assert planning.is_miss(predicted, expert)
    assert not planning.is_miss(predicted, expert, threshold=3.1)


def test_displacements_over_a_batch() -> None:
    rng = np.random.default_rng(0)
    predicted, expert = rng.normal(size=(2, 7, 20, 4))
    assert planning.average_displacement(predicted, expert).shape == (7,)
    one = [
        np.mean([np.hypot(*(p - e)[:2]) for p, e in zip(a, b, strict=True)])
        for a, b in zip(predicted, expert, strict=True)
    ]
    np.testing.assert_allclose(planning.average_displacement(predicted, expert), one)


def test_min_ade_takes_the_best_sample() -> None:
    expert = straight()
    samples = np.stack([expert + np.array([0, offset, 0, 0]) for offset in (3.0, -0.5, 1.0)])
    assert planning.min_average_displacement(samples, expert) == pytest.approx(0.5)


def test_ego_footprint_is_ahead_of_the_rear_axle() -> None:
    corners = ego_footprints(np.array([[0.0, 0.0, 0.0, 5.0]]), Vehicle(length=5.0, width=2.0, rear_overhang=1.0))[0]
    assert corners[:, 0].min() == pytest.approx(-1.0)
    assert corners[:, 0].max() == pytest.approx(4.0)
    assert np.abs(corners[:, 1]).max() == pytest.approx(1.0)


def test_collision_when_the_bumpers_meet() -> None:
    agents, sizes = np.tile([60.0, 0.0, 0.0], (1, 40, 1)), np.array([[4.5, 1.8]])
    hits = planning.collision_steps(straight(steps=40), agents, sizes, Vehicle(length=4.6, rear_overhang=1.0))
    # The ego's front is 3.6 m ahead of its axle, the other's rear at 57.75 m: contact at x > 54.15 m, at 2 m a step.
    assert int(np.argmax(hits)) + 1 == 28


def test_an_agent_that_is_gone_is_not_hit() -> None:
    agents = np.full((1, 40, 3), np.nan)
    assert not planning.collision_steps(straight(steps=40), agents, np.array([[4.5, 1.8]])).any()
    assert not planning.collision_steps(straight(), np.zeros((0, 20, 3)), np.zeros((0, 2))).any()


def test_a_collision_between_two_steps_counts_for_the_second() -> None:
    # 25 m/s each in one lane: 12.5 m closer a step, while the bodies are 9.1 m long together.
    states, times = straight(speed=25.0), np.arange(1, 21) / 4.0
    agents = np.column_stack([60.0 - 25.0 * times, np.zeros(20), np.full(20, np.pi)])[None]
    for shift in np.arange(0.0, 12.5, 0.5):
        hits = planning.collision_steps(states, agents + np.array([shift, 0.0, 0.0]), np.array([[4.5, 1.8]]))
        meeting = (60.0 + shift - 2.25 - 3.6) / 50.0
        assert int(np.argmax(hits)) == np.searchsorted(times, meeting), shift


def test_who_overlaps_now_is_an_annotation_error_and_who_stands_before_the_bumper_is_hit() -> None:
    for x, expected in ((1.5, 0.0), (5.0, 1.0)):
        box = np.array([[x, 0.0, 0.8, 1.0, 1.0, 1.6, 0.0, 0.0, 0.0]])
        around = Surroundings(np.tile([x, 0.0, 0.0], (1, 20, 1)))
        scene = make_scene(boxes=Boxes(box, ("debris",)), surroundings=around)
        fast = Trajectory(straight(speed=40.0))  # past it at the first step
        assert planning.trajectory_measures(scene, fast)["collision"] == expected


def test_off_road_over_the_union_of_polygons() -> None:
    halves = [np.array([[x, -4.0], [x + 50.0, -4.0], [x + 50.0, 4.0], [x, 4.0]]) for x in (-20.0, 30.0)]
    assert not planning.off_road_steps(straight(), halves).any()
    drifting = straight()
    drifting[:, 1] = np.linspace(0.0, 4.0, 20)
    steps = planning.off_road_steps(drifting, halves, Vehicle(width=2.0), tolerance=0.0)
    np.testing.assert_array_equal(steps, drifting[:, 1] > 3.0)


def test_comfort_of_a_constant_arc() -> None:
    initial = np.array([0.0, 0.0, 0.0, 10.0])
    states = unicycle_rollout(initial, np.tile([1.0, 0.02], (20, 1)), 0.25)
    felt = planning.comfort_quantities(initial, states, 4.0)
    np.testing.assert_allclose(felt["longitudinal_acceleration"], 1.0)
    np.testing.assert_allclose(felt["longitudinal_jerk"], 0.0, atol=1e-9)
    speeds = np.concatenate([[10.0], states[:, 3]])
    middle = (speeds[1:] + speeds[:-1]) / 2
    np.testing.assert_allclose(felt["yaw_rate"], 0.02 * middle)
    np.testing.assert_allclose(felt["lateral_acceleration"], 0.02 * middle**2)
    assert planning.is_comfortable(felt)


@pytest.mark.parametrize("name", planning.COMFORT_BOUNDS)
def test_each_bound_counts(name: str) -> None:
    calm = {key: np.zeros(5) for key in planning.COMFORT_BOUNDS}
    assert planning.is_comfortable(calm)
    beyond = planning.COMFORT_BOUNDS[name][1] + 0.01
    assert not planning.is_comfortable(calm | {name: np.array([0.0, beyond])})


def test_a_jump_from_the_current_speed_is_felt() -> None:
    felt = planning.comfort_quantities(np.array([0.0, 0.0, 0.0, 0.0]), straight(speed=8.0), 4.0)
    assert felt["longitudinal_acceleration"][0] == pytest.approx(32.0)
    assert not planning.is_comfortable(felt)


def test_heading_wraps() -> None:
    states = np.array([[0.0, 0.0, 3.1, 1.0], [0.0, 0.0, -3.1, 1.0]])
    felt = planning.comfort_quantities(np.array([0.0, 0.0, 3.1, 1.0]), states, 4.0)
    assert np.abs(felt["yaw_rate"]).max() < 0.4


def test_measures_of_a_scene() -> None:
    scene = make_scene()
    assert scene.future is not None
    perfect = planning.trajectory_measures(scene, scene.future)
    assert perfect["ade"] == perfect["collision"] == perfect["off_road"] == perfect["miss"] == 0.0
    assert perfect["comfortable"] == 1.0
    fast = straight(speed=12.0)
    worse = planning.trajectory_measures(scene, Trajectory(fast), samples=[scene.future])
    assert worse["collision"] == worse["miss"] == 1.0
    assert worse["min_ade"] == 0.0
    assert np.isnan(perfect["min_ade"])
    assert worse["ade"] == pytest.approx(np.mean(np.arange(1, 21)))


def test_what_a_scene_cannot_tell_is_nan() -> None:
    blind = make_scene(surroundings=None)
    assert blind.future is not None
    measures = planning.trajectory_measures(blind, blind.future)
    assert np.isnan(measures["collision"])
    assert np.isnan(measures["off_road"])
    unmapped = make_scene(surroundings=Surroundings(np.tile([90.0, 0.0, 0.0], (1, 20, 1))))
    assert unmapped.future is not None
    measures = planning.trajectory_measures(unmapped, unmapped.future)
    assert measures["collision"] == 0.0
    assert np.isnan(measures["off_road"])


@pytest.mark.parametrize(
    ("predicted", "word"),
    [
        (Trajectory(straight(steps=10)), "10 states"),
        (Trajectory(straight(), rate_hz=10.0), "10 Hz"),
        (Trajectory(straight() * np.nan), "NaN"),
    ],
)
def test_a_trajectory_that_cannot_be_compared(predicted: Trajectory, word: str) -> None:
    with pytest.raises(SceneError, match=rf"hand-1.*{word}"):
        planning.trajectory_measures(make_scene(), predicted)


@pytest.mark.parametrize("field", ["history", "future"])
def test_a_scene_without_ends(field: str) -> None:
    with pytest.raises(SceneError, match=field):
        planning.trajectory_measures(make_scene(**{field: None}), Trajectory(straight()))


NUMBERS = st.one_of(st.floats(), st.sampled_from([0.0, 1e30, -1e300, 8.0]))


@pytest.mark.fault("plans that are not finite")
@pytest.mark.attack("answer", "a plan of any numbers", "a fault that is counted; means stay finite")
@fuzz(30)
@given(st.lists(st.lists(NUMBERS, min_size=4, max_size=4), max_size=21), st.sampled_from([4.0, 10.0, 0.0, np.nan]))
def test_no_plan_raises_or_makes_a_mean_nan(states: list[list[float]], rate: float) -> None:
    score, scene = planning.TrajectoryScore(), make_scene()
    plan = Trajectory(np.array(states).reshape(-1, 4), rate)
    score.update(scene, score.judge(scene, plan, [plan]))
    results = score.compute()
    assert all(np.isfinite(results[name]["all"]) for name in ("ade", "fde", "miss", "collision", "max_jerk"))
    faults = sum(by["all"] for name, by in results.items() if name.startswith("fault/") and not np.isnan(by["all"]))
    assert faults == results["parse_failure"]["all"]


def test_a_scene_that_cannot_judge_is_named() -> None:
    wrong = make_scene(surroundings=Surroundings(np.full((1, 20, 3), np.inf)))
    with pytest.raises(SceneError, match=r"scene hand-1: it cannot judge plans: surroundings\.agents"):
        planning.TrajectoryScore().judge(wrong, wrong.future)


def test_score_by_kind_and_failures() -> None:
    score = planning.TrajectoryScore()
    scene, other = make_scene(), make_scene(id="hand-2", kind="curve", future=Trajectory(straight(speed=6.0)))
    score.update(scene, score.judge(scene, scene.future))
    score.update(other, score.judge(other, None))
    results = score.compute()
    standing = 6.0 * np.arange(1, 21).mean() / 4.0
    assert results["ade"] == pytest.approx({"all": standing / 2, "curve": standing, "straight": 0.0})
    assert results["parse_failure"] == {"all": 0.5, "curve": 1.0, "straight": 0.0}
    assert results["miss"] == {"all": 0.5, "curve": 1.0, "straight": 0.0}
    assert results["scenes"] == {"all": 2.0, "curve": 1.0, "straight": 1.0}
    assert results["max_longitudinal_acceleration"]["curve"] == pytest.approx(32.0)


def test_a_failure_never_beats_an_answer_of_standing_still() -> None:
    score = planning.TrajectoryScore()
    parked = np.zeros((20, 4))
    scene = make_scene(future=Trajectory(parked))
    failed, stayed = score.judge(scene, None), score.judge(scene, Trajectory(parked))
    assert failed["ade"] > stayed["ade"]
    assert failed["miss"] == 1.0
