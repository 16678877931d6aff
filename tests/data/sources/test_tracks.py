"""Logged tracks: interpolation at exact nanoseconds, gaps and ends, futures that are driving."""

from __future__ import annotations

import numpy as np
import pytest

from framework.data.sources.tracks import (
    FUTURE,
    PERIOD,
    SECOND,
    Body,
    Track,
    agents_of,
    ego_future,
    ego_history,
    has_future,
    has_history,
    surroundings_of,
)
from framework.scene.frames import rigid, yaw_rotation
from framework.scene.kinematics import unicycle_rollout
from framework.scene.types import FloatArray, SceneError

NOW = 315_973_157_959_879_001  # a float would round it to a multiple of 64 ns


def _arc(seconds: float, acceleration: float = 0.5, curvature: float = 0.02, noise: float = 0.0) -> Track:
    """A drive logged at 20 Hz from two seconds before `NOW`, somewhere in a city, heading across it at `NOW`."""
    steps = round(20 * (seconds + 2.0))
    controls = np.tile([acceleration, curvature], (steps, 1))
    start = np.array([0.0, 0.0, 3.0, 6.0])
    states = np.concatenate([start[None], unicycle_rollout(start, controls, 0.05)])
    positions = states[:, :2] + np.array([1468.0, 211.0]) + np.random.default_rng(0).normal(size=(steps + 1, 2)) * noise
    times = NOW + (np.arange(steps + 1) - 40) * (SECOND // 20)
    return Track(times, np.c_[positions, np.full(steps + 1, 13.0), states[:, 2]])


def _frame(track: Track) -> FloatArray:
    x, y, z, heading = track.at(np.array([NOW]))[0]
    return rigid(yaw_rotation(heading), np.array([x, y, z]))


def test_poses_between_are_exact_to_the_nanosecond_and_headings_take_the_short_way() -> None:
    track = Track(np.array([NOW, NOW + 100]), np.array([[0.0, 0.0, 0.0, 3.1], [100.0, 200.0, 0.0, -3.1]]))
    poses = track.at(np.array([NOW, NOW + 1, NOW + 100]))
    np.testing.assert_allclose(poses[:, 0], [0.0, 1.0, 100.0])
    np.testing.assert_allclose(poses[1], [1.0, 2.0, 0.0, 3.1 + (2 * np.pi - 6.2) / 100])


def test_a_track_is_nowhere_outside_its_ends_and_in_its_gaps() -> None:
    track = Track(np.array([0, 1, 3]) * SECOND // 2, np.arange(12, dtype=np.float64).reshape(3, 4))
    times = np.array([-1, 0, 1, SECOND // 2, SECOND // 2 + 1, 3 * SECOND // 2, 3 * SECOND // 2 + 1])
    assert np.isfinite(track.at(times)).all(axis=1).tolist() == [False, True, True, True, False, True, False]
    alone = Track(np.array([5]), np.zeros((1, 4)))
    assert np.isnan(alone.velocity(np.array([5]), SECOND)).all()


def test_history_and_future_of_a_steady_drive_are_its_own_states() -> None:
    track = _arc(5.0)
    frame = _frame(track)
    history, future = ego_history(track, NOW, frame), ego_future(track, NOW, frame, "arc")
    speed = 6.0 + 0.5 * 2.0
    np.testing.assert_allclose(history.states[-1], [0.0, 0.0, 0.0, speed], atol=2e-3)
    assert history.states[0, 0] < -8.0
    truth = unicycle_rollout(np.array([0.0, 0.0, 0.0, speed]), np.tile([0.5, 0.02], (FUTURE, 1)), 0.25)
    np.testing.assert_allclose(future.states, truth, atol=0.05)


def test_noise_of_the_log_does_not_become_jerk() -> None:
    track = _arc(5.0, noise=0.02)
    future = ego_future(track, NOW, _frame(track), "noisy")
    accelerations = np.diff(future.states[:, 3]) / 0.25
    raw = ego_history(track, NOW, _frame(track)).states[:, 3]
    assert np.abs(accelerations - 0.5).max() < 0.5
    assert np.abs(np.diff(raw) / 0.25 - 0.5).max() > 0.5, "without the fit it would"


def test_a_jump_of_the_log_is_refused_by_name() -> None:
    track = _arc(5.0)
    track.poses[100:, 1] += 3.0
    with pytest.raises(SceneError, match="log 7: future: no kinematic path"):
        ego_future(track, NOW, _frame(_arc(5.0)), "log 7")


def test_enough_past_and_future_is_exact() -> None:
    assert has_history(NOW - 6 * PERIOD, NOW)
    assert not has_history(NOW - 6 * PERIOD + 1, NOW)
    assert has_future(NOW, NOW + 20 * PERIOD)
    assert not has_future(NOW, NOW + 20 * PERIOD - 1)


def test_agents_end_with_their_tracks() -> None:
    track = _arc(2.0)
    agents = agents_of([track], NOW, _frame(track))
    assert np.isfinite(agents[0, :, 0]).tolist() == [True] * 8 + [False] * 12


@pytest.mark.fault("road users who come near later")
def test_who_is_annotated_later_alone_is_distant_and_nowhere_until_then() -> None:
    ego = _arc(5.0)
    frame = _frame(ego)
    early = Track(ego.times[:30], ego.poses[:30])  # ends before the moment
    late = Track(ego.times[80:], ego.poses[80:])  # starts two seconds after it
    far = Track(late.times, late.poses + np.array([5000.0, 0.0, 0.0, 0.0]))
    bodies = [Body("car", (4.0, 1.8, 1.5), track) for track in (early, late, far)]
    around = surroundings_of([], (), ego, NOW, frame, bodies)
    assert around.distant is not None
    assert around.distant_agents is not None
    assert around.distant.labels == ("car",)
    assert np.isnan(around.distant.values[:, :2]).all()
    np.testing.assert_array_equal(around.distant.values[0, 2:7], [0.75, 4.0, 1.8, 1.5, 0.0])
    assert np.isfinite(around.distant_agents[0, :, 0]).tolist() == [False] * 7 + [True] * 13
    np.testing.assert_allclose(around.distant_agents[0], agents_of([late], NOW, frame)[0])
    assert surroundings_of([], (), ego, NOW, frame, bodies[:1]).distant is None
