"""Vehicle dynamics: how the ego responds to controls, acceleration (m/s^2) and curvature (1/m), within its limits."""

from __future__ import annotations

from typing import Annotated, Protocol

import torch
from annotated_types import Interval
from torch import Tensor

from framework.recipe.component import component
from framework.recipe.ranges import Acceleration, Curvature, Metres
from framework.scene.kinematics import curvature_of_steering, steering_of_curvature, unicycle_step


class Dynamics(Protocol):
    """Advances the egos of a batch by one step."""

    def __call__(self, states: Tensor, curvature: Tensor, controls: Tensor, dt: float) -> tuple[Tensor, Tensor]:
        """The next states `(b, 4)` and the curvature driven `(b,)`.

        Args:
            states: `(b, 4)`.
            curvature: `(b,)` (1/m), driven in the previous step.
            controls: `(b, 2)`, constant during the step.
            dt: the step's length (s).
        """
        ...


@component
class Unicycle:
    """Follows controls immediately, clipped to the limits.

    Args:
        acceleration_limit: the largest acceleration and braking (m/s^2).
        curvature_limit: the largest curvature (1/m) to either side.
    """

    def __init__(self, acceleration_limit: Acceleration = 9.8, curvature_limit: Curvature = 0.2) -> None:
        self.acceleration_limit = acceleration_limit
        self.curvature_limit = curvature_limit

    def __call__(self, states: Tensor, curvature: Tensor, controls: Tensor, dt: float) -> tuple[Tensor, Tensor]:
        """See `Dynamics`."""
        acceleration = controls[..., 0].clamp(-self.acceleration_limit, self.acceleration_limit)
        driven = controls[..., 1].clamp(-self.curvature_limit, self.curvature_limit)
        return unicycle_step(states, torch.stack([acceleration, driven], dim=-1), dt), driven


@component
class Bicycle:
    """A kinematic bicycle, whose front wheel turns towards the requested curvature at a limited rate.

    Within a step the wheel keeps the angle that it reaches at the step's end.

    Args:
        wheel_base: the distance (m) between the axles.
        steering_limit: the largest angle (rad) of the front wheel to either side.
        steering_rate: how fast (rad/s) the front wheel turns.
        acceleration_limit: the largest acceleration and braking (m/s^2).
    """

    def __init__(
        self,
        wheel_base: Metres = 2.8,
        steering_limit: Annotated[float, Interval(ge=1e-6, le=1.5)] = 0.6,
        steering_rate: Annotated[float, Interval(ge=1e-6, le=100)] = 0.8,
        acceleration_limit: Acceleration = 9.8,
    ) -> None:
        self.wheel_base = wheel_base
        self.steering_limit = steering_limit
        self.steering_rate = steering_rate
        self.acceleration_limit = acceleration_limit

    def __call__(self, states: Tensor, curvature: Tensor, controls: Tensor, dt: float) -> tuple[Tensor, Tensor]:
        """See `Dynamics`."""
        acceleration = controls[..., 0].clamp(-self.acceleration_limit, self.acceleration_limit)
        current = steering_of_curvature(curvature, self.wheel_base)
        target = steering_of_curvature(controls[..., 1], self.wheel_base)
        change = (target - current).clamp(-self.steering_rate * dt, self.steering_rate * dt)
        steering = (current + change).clamp(-self.steering_limit, self.steering_limit)
        driven = curvature_of_steering(steering, self.wheel_base)
        return unicycle_step(states, torch.stack([acceleration, driven], dim=-1), dt), driven
