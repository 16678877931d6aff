"""Vehicle kinematics and their exact inverses, for numpy and torch alike, batched over any leading dimensions.

A state is (x, y, heading, speed), a control (longitudinal acceleration in m/s^2, curvature in 1/m). Within a step of
`dt` seconds acceleration and curvature are constant, so that the vehicle drives an exact arc of the length

    s = v dt + a dt^2 / 2          while v + a dt >= 0
    s = v^2 / (2 |a|)              once it stops within the step

and turns by curvature * s. The heading changes with the distance, not the time: a standing vehicle does not turn.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from array_api_compat import array_namespace

from framework.scene.frames import footprints, wrap_angle
from framework.scene.types import FloatArray, Trajectory

STANDSTILL_M = 1e-6
"""A step shorter than this has no defined curvature; the inverse calls it zero."""
NO_DISTANCE_M = 1e-9
"""The shortest braking distance that the inverse accepts; shorter ones would need an infinite deceleration."""


@dataclass(frozen=True, slots=True)
class Vehicle:
    """The ego's body. States refer to the centre of its rear axle."""

    length: float = 4.6
    """From bumper to bumper (m)."""
    width: float = 1.9
    """Width (m)."""
    height: float = 1.6
    """Height (m)."""
    rear_overhang: float = 1.0
    """From the rear bumper to the rear axle (m)."""
    wheel_base: float = 2.8
    """From the rear axle to the front axle (m)."""

    @property
    def front(self) -> float:
        """The front bumper's distance ahead of the rear axle (m)."""
        return self.length - self.rear_overhang

    @property
    def centre(self) -> float:
        """The body's centre ahead of the rear axle (m)."""
        return self.length / 2.0 - self.rear_overhang


EGO = Vehicle()


def ego_box(states: Any, vehicle: Vehicle = EGO) -> Any:
    """The ego's body `(..., 5)` (centre x, y, heading, length, width) in `states` `(..., 3+)`."""
    xp = array_namespace(states)
    x, y, heading = (states[..., i] for i in range(3))
    centre = (x + vehicle.centre * xp.cos(heading), y + vehicle.centre * xp.sin(heading))
    return xp.stack([*centre, heading, xp.full_like(x, vehicle.length), xp.full_like(x, vehicle.width)], axis=-1)


def ego_footprints(states: FloatArray, vehicle: Vehicle = EGO) -> FloatArray:
    """Ground-plane corners `(time, 4, 2)` (m) of the ego's body in `states` `(time, 3+)`."""
    return box_footprints(ego_box(states, vehicle))


def box_footprints(boxes: FloatArray) -> FloatArray:
    """Ground-plane corners `(n, 4, 2)` (m) of boxes `(n, 5)`: centre x, y, heading, length, width."""
    rows = np.zeros((len(boxes), 7))
    rows[:, :2], rows[:, 3:5], rows[:, 6] = boxes[:, :2], boxes[:, 3:5], boxes[:, 2]
    return footprints(rows)


def unicycle_step(state: Any, control: Any, dt: float) -> Any:
    """One step: `state` `(..., 4)`, `control` `(..., 2)` -> the next state `(..., 4)`. Speed never turns negative."""
    xp = array_namespace(state, control)
    x, y, heading, speed = (state[..., i] for i in range(4))
    acceleration, curvature = control[..., 0], control[..., 1]
    wanted = speed + acceleration * dt
    stops = wanted < 0
    braking = xp.where(stops, -acceleration, xp.ones_like(acceleration))
    distance = xp.where(stops, speed * speed / (2 * braking), speed * dt + acceleration * dt * dt / 2)
    turn = curvature * distance
    chord, direction = distance * sinc(turn / 2), heading + turn / 2
    return xp.stack(
        [
            x + chord * xp.cos(direction),
            y + chord * xp.sin(direction),
            wrap_angle(heading + turn),
            xp.where(stops, xp.zeros_like(wanted), wanted),
        ],
        axis=-1,
    )


def unicycle_rollout(initial: Any, controls: Any, dt: float) -> Any:
    """States after each control: `initial` `(..., 4)`, `controls` `(..., time, 2)` -> `(..., time, 4)`."""
    xp = array_namespace(initial, controls)
    state, states = initial, []
    for step in range(controls.shape[-2]):
        state = unicycle_step(state, controls[..., step, :], dt)
        states.append(state)
    return xp.stack(states, axis=-2)


def unicycle_controls(initial: Any, states: Any, dt: float) -> Any:
    """The controls that lead through `states`: the inverse of `unicycle_rollout`, exact to rounding on what it returns.

    `initial` `(..., 4)`, `states` `(..., time, 4)` -> `(..., time, 2)`. Where a step ends standing, the acceleration
    is that of the distance covered (a vehicle that stops within the step brakes harder than its change of speed over
    `dt`). At standstill both are zero.
    """
    xp = array_namespace(initial, states)
    before = xp.concat([initial[..., None, :], states[..., :-1, :]], axis=-2)
    speed, next_speed = before[..., 3], states[..., 3]
    dx, dy = states[..., 0] - before[..., 0], states[..., 1] - before[..., 1]
    turn = wrap_angle(states[..., 2] - before[..., 2])
    direction = before[..., 2] + turn / 2
    distance = (dx * xp.cos(direction) + dy * xp.sin(direction)) / sinc(turn / 2)
    moves = xp.abs(distance) > STANDSTILL_M
    safe = xp.where(moves, distance, xp.ones_like(distance))
    stops = (next_speed <= 0) & (speed > 0)
    braking = speed * speed / (2 * xp.where(distance > NO_DISTANCE_M, distance, xp.full_like(distance, NO_DISTANCE_M)))
    acceleration = xp.where(stops, -braking, (next_speed - speed) / dt)
    curvature = xp.where(moves, turn / safe, xp.zeros_like(turn))
    return xp.stack([acceleration, curvature], axis=-1)


def curvature_of_steering(steering: Any, wheel_base: float) -> Any:
    """Kinematic bicycle: curvature (1/m) of a front-wheel angle (rad) with `wheel_base` in metres: tan(steering) /
    wheel_base."""
    return array_namespace(steering).tan(steering) / wheel_base


def steering_of_curvature(curvature: Any, wheel_base: float) -> Any:
    """Inverse of `curvature_of_steering`: atan(curvature * wheel_base)."""
    return array_namespace(curvature).atan(curvature * wheel_base)


def fit_controls(
    initial: FloatArray, future: Trajectory, smoothness: float = 0.5, ridge: float = 1e-3, iterations: int = 8
) -> FloatArray:
    """Controls whose rollout is close to a *noisy* logged trajectory, without its jerk.

    Damped Gauss-Newton on the positions, regularised by the controls' size (`ridge`) and their second differences
    (`smoothness`), in the manner of Alpamayo-R1's regularised inverse (arXiv 2511.00088, section on the action
    representation). `initial` `(4,)` -> `(time, 2)`.
    """
    dt, steps = 1.0 / future.rate_hz, len(future.states)
    scale = np.array(
        [1.0, 0.05]
    )  # a typical acceleration (m/s^2) and curvature (1/m): both weigh alike when regularised
    second = np.diff(np.eye(steps), n=2, axis=0)
    penalty = np.kron(smoothness * second.T @ second + ridge * np.eye(steps), np.eye(2))
    bumps = np.concatenate([np.zeros((1, steps, 2)), np.eye(2 * steps).reshape(-1, steps, 2) * 1e-4])
    # The log's own controls, within reason: from rest the path could not be told from one that never moves.
    controls = np.clip(unicycle_controls(initial, future.states, dt) / scale, -4.0, 4.0).ravel()
    damping, reached = 1e-3, np.inf
    candidate = controls
    for _ in range(iterations):
        bumped = (candidate.reshape(steps, 2) + bumps) * scale
        rolled = unicycle_rollout(np.broadcast_to(initial, (2 * steps + 1, 4)), bumped, dt)
        residual = (future.states[:, :2] - rolled[0, :, :2]).ravel()
        cost = float(residual @ residual + candidate @ penalty @ candidate)
        if cost < reached:
            controls, reached, damping = candidate, cost, damping / 10
            jacobian = ((rolled[1:] - rolled[0])[..., :2].reshape(2 * steps, -1)).T / 1e-4
            gradient, curving = jacobian.T @ residual - penalty @ controls, jacobian.T @ jacobian + penalty
        else:
            damping *= 10
        candidate = controls + np.linalg.solve(curving + damping * np.eye(2 * steps), gradient)
    fitted: FloatArray = controls.reshape(steps, 2) * scale
    return fitted


def sinc(angle: Any) -> Any:
    """sin(angle) / angle, 1 at zero, with finite gradients everywhere: an arc's chord over its length, by half its
    turn."""
    xp = array_namespace(angle)
    small = xp.abs(angle) < 1e-4
    safe = xp.where(small, xp.ones_like(angle), angle)
    return xp.where(small, 1 - angle * angle / 6, xp.sin(safe) / safe)
