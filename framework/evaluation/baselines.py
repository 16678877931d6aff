"""Baselines from the model's own inputs: trajectories extrapolate the history, boxes copy the perception stack."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from framework.scene.frames import wrap_angle
from framework.scene.kinematics import unicycle_rollout
from framework.scene.types import Boxes, FloatArray, Scene, SceneError, Trajectory


def stay(scene: Scene) -> Trajectory:
    """Standing still at the ego's current position, over the times of the expert's future."""
    return _roll_out(scene, speed_factor=0.0, curvature=0.0)


def constant_velocity(scene: Scene) -> Trajectory:
    """Straight ahead at the current speed."""
    return _roll_out(scene, speed_factor=1.0, curvature=0.0)


def constant_turn_rate(scene: Scene) -> Trajectory:
    """The current speed along the arc of the history's last period (CTRV)."""
    states = _history(scene)
    moved = float(np.hypot(*(states[-1, :2] - states[-2, :2]))) if len(states) > 1 else 0.0
    turned = float(wrap_angle(np.asarray(states[-1, 2] - states[-2, 2]))) if len(states) > 1 else 0.0
    return _roll_out(scene, speed_factor=1.0, curvature=turned / moved if moved > 0.1 else 0.0)


TRAJECTORY_BASELINES: dict[str, Callable[[Scene], Trajectory]] = {
    "constant velocity": constant_velocity,
    "constant turn rate": constant_turn_rate,
    "stay": stay,
}


def perception_copy(scene: Scene) -> Boxes | None:
    """The perception stack's boxes unchanged; None where the scene has none."""
    return scene.perception


def _history(scene: Scene) -> FloatArray:
    if scene.history is None or not len(scene.history.states):
        raise SceneError(f"scene {scene.id}: field `history` is missing; the baselines extrapolate it")
    return np.asarray(scene.history.states, dtype=np.float64)


def _roll_out(scene: Scene, speed_factor: float, curvature: float) -> Trajectory:
    """Constant speed and curvature over the times of the expert's future."""
    if scene.future is None:
        raise SceneError(f"scene {scene.id}: field `future` is missing; it gives the baselines their times")
    speed, steps, rate = float(_history(scene)[-1, 3]), len(scene.future.states), scene.future.rate_hz
    initial = np.array([0.0, 0.0, 0.0, speed * speed_factor])
    controls = np.tile([0.0, curvature], (steps, 1))
    return Trajectory(unicycle_rollout(initial, controls, 1.0 / rate), rate)
