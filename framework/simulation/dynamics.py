"""How the ego answers to controls: acceleration (m/s^2) and curvature (1/m), within what its engine, brakes and
steering can do."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from framework.scene.kinematics import curvature_of_steering, steering_of_curvature, unicycle_step


class Dynamics(Protocol):
    """Moves the egos of a batch by one step."""

    def __call__(self, states: Tensor, curvature: Tensor, controls: Tensor, dt: float) -> tuple[Tensor, Tensor]:
        """The next states `(b, 4)` and the curvature driven `(b,)`, from `states` `(b, 4)`, the curvature of the step
        before `(b,)` and `controls` `(b, 2)`, held for `dt` seconds."""
        ...


class Unicycle:
    """Takes any curvature at once; controls beyond `acceleration_limit` (m/s^2) and `curvature_limit` (1/m), either
    way, are cut off there."""

    def __init__(self, acceleration_limit: float = 9.8, curvature_limit: float = 0.2) -> None:
        self.acceleration_limit = acceleration_limit
        self.curvature_limit = curvature_limit

    def __call__(self, states: Tensor, curvature: Tensor, controls: Tensor, dt: float) -> tuple[Tensor, Tensor]:
        """See `Dynamics`."""
        acceleration = controls[..., 0].clamp(-self.acceleration_limit, self.acceleration_limit)
        driven = controls[..., 1].clamp(-self.curvature_limit, self.curvature_limit)
        return unicycle_step(states, torch.stack([acceleration, driven], dim=-1), dt), driven


class Bicycle:
    """A kinematic bicycle: the front wheel turns towards the wanted curvature at no more than `steering_rate` (rad/s)
    and stays within `steering_limit` (rad); `wheel_base` in m, `acceleration_limit` (m/s^2) either way.

    Within a step the wheel keeps the angle that it reaches at the step's end.
    """

    def __init__(
        self,
        wheel_base: float = 2.8,
        steering_limit: float = 0.6,
        steering_rate: float = 0.8,
        acceleration_limit: float = 9.8,
    ) -> None:
        self.wheel_base = wheel_base
        self.steering_limit = steering_limit
        self.steering_rate = steering_rate
        self.acceleration_limit = acceleration_limit

    def __call__(self, states: Tensor, curvature: Tensor, controls: Tensor, dt: float) -> tuple[Tensor, Tensor]:
        """See `Dynamics`."""
        acceleration = controls[..., 0].clamp(-self.acceleration_limit, self.acceleration_limit)
        held = steering_of_curvature(curvature, self.wheel_base)
        wanted = steering_of_curvature(controls[..., 1], self.wheel_base)
        change = (wanted - held).clamp(-self.steering_rate * dt, self.steering_rate * dt)
        steering = (held + change).clamp(-self.steering_limit, self.steering_limit)
        driven = curvature_of_steering(steering, self.wheel_base)
        return unicycle_step(states, torch.stack([acceleration, driven], dim=-1), dt), driven
