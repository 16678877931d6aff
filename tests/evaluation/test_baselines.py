from __future__ import annotations

import numpy as np
import pytest

from framework.evaluation.baselines import TRAJECTORY_BASELINES, constant_turn_rate, constant_velocity, stay
from framework.scene.kinematics import unicycle_rollout
from framework.scene.types import SceneError, Trajectory
from tests.evaluation.scenes import make_scene, straight


def test_constant_velocity_and_stay() -> None:
    scene = make_scene()
    np.testing.assert_allclose(constant_velocity(scene).states, straight(speed=8.0))
    assert not stay(scene).states.any()


def test_constant_turn_rate_continues_an_arc() -> None:
    arc = unicycle_rollout(np.array([0.0, 0.0, 0.0, 8.0]), np.tile([0.0, 0.03], (21, 1)), 0.25)
    past = np.array([[-2.0, 0.03, -0.06, 8.0], [0.0, 0.0, 0.0, 8.0]])
    scene = make_scene(history=Trajectory(past), future=Trajectory(arc[:20]))
    np.testing.assert_allclose(constant_turn_rate(scene).states, arc[:20], atol=1e-2)
    standing = make_scene(history=Trajectory(np.zeros((2, 4))))
    assert not constant_turn_rate(standing).states.any()


def test_baselines_take_the_future_rate_and_length() -> None:
    scene = make_scene(future=Trajectory(straight(steps=64, rate=10.0), rate_hz=10.0))
    for make in TRAJECTORY_BASELINES.values():
        trajectory = make(scene)
        assert (trajectory.rate_hz, len(trajectory.states)) == (10.0, 64)


@pytest.mark.parametrize("field", ["history", "future"])
def test_what_is_missing_is_named(field: str) -> None:
    with pytest.raises(SceneError, match=f"hand-1: field `{field}`"):
        constant_turn_rate(make_scene(**{field: None}))
