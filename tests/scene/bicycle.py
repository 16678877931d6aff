"""A kinematic bicycle, to compare the framework's unicycle and its steering with."""

from __future__ import annotations

from typing import Any

from array_api_compat import array_namespace

from framework.scene.kinematics import (
    curvature_of_steering,
    steering_of_curvature,
    unicycle_controls,
    unicycle_rollout,
)


def bicycle_rollout(initial: Any, controls: Any, dt: float, wheel_base: float) -> Any:
    """As `unicycle_rollout`, with controls (acceleration, front-wheel steering angle in rad) and the rear axle as
    reference point."""
    xp = array_namespace(initial, controls)
    curvature = curvature_of_steering(controls[..., 1], wheel_base)
    return unicycle_rollout(initial, xp.stack([controls[..., 0], curvature], axis=-1), dt)


def bicycle_controls(initial: Any, states: Any, dt: float, wheel_base: float) -> Any:
    """Inverse of `bicycle_rollout`: (acceleration, steering angle), `(..., time, 2)`."""
    xp = array_namespace(initial, states)
    controls = unicycle_controls(initial, states, dt)
    return xp.stack([controls[..., 0], steering_of_curvature(controls[..., 1], wheel_base)], axis=-1)
