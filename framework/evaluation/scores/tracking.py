"""How NAVSIM drives a plan before it scores it: an LQR tracks it with a kinematic bicycle.

Source: navsim (commit 0a380a9), `pdm_planner/simulation/{batch_lqr,batch_lqr_utils,batch_kinematic_bicycle}.py`, after
nuPlan's. All functions are batched over `b` plans.
"""

from __future__ import annotations

import numpy as np

from framework.scene.frames import wrap_angle
from framework.scene.kinematics import Vehicle
from framework.scene.types import FloatArray

PACIFICA = Vehicle(length=5.176, width=2.297, height=1.777, rear_overhang=1.127, wheel_base=3.089)
"""nuPlan's ego."""
DT = 0.1
"""A step (s)."""
STEPS = 40
"""Steps of a plan: 4 s."""
AHEAD = 10
"""Steps by which the tracker looks ahead."""
SPEED_WEIGHT, LATERAL_WEIGHTS = 10.0, (1.0, 10.0, 0.0)
"""Costs of errors of speed; of lateral error, heading error and steering angle. Inputs cost 1."""
STOPPING_SPEED, STOPPING_GAIN = 0.2, 0.5
"""Below this speed (m/s) of plan and ego a proportional controller takes over, with this gain (1/s)."""
ACCELERATION_PENALTY, CURVATURE_RATE_PENALTY, CURVATURE_PENALTY = 1e-4, 1e-2, 1e-10
"""Regularizations of the speeds and curvatures that are fitted to a plan."""
ACCELERATION_LAG, STEERING_LAG, MAX_STEERING = 0.2, 0.05, np.pi / 3
"""Time constants (s) of the bicycle's acceleration and steering, and its largest steering angle (rad)."""
COLUMNS = ("x", "y", "heading", "speed", "acceleration", "steering", "yaw_rate", "yaw_acceleration")
"""Columns of a tracked state: of the rear axle, in SI units."""


def at_tenths(plan: FloatArray, rate_hz: float) -> FloatArray:
    """A plan `(n, 3+)` (x, y, heading) at `rate_hz` from one period on as poses `(41, 3)` each `DT` from the origin on:
    linear in between, the last one stays.
    """
    times = np.arange(len(plan) + 1) / rate_hz
    poses = np.concatenate([np.zeros((1, 3)), plan[:, :3]])
    poses[:, 2] = np.unwrap(poses[:, 2])
    wanted = DT * np.arange(STEPS + 1)
    found = np.stack([np.interp(wanted, times, poses[:, k]) for k in range(3)], axis=1)
    found[:, 2] = wrap_angle(found[:, 2])
    return found


def track(poses: FloatArray, initial: FloatArray, vehicle: Vehicle = PACIFICA) -> FloatArray:
    """The states `(b, n, 8)` (see `COLUMNS`) of an ego that tracks `poses` `(b, n, 3)`, one each `DT`, from its current
    state `initial` `(8,)`.
    """
    speeds, curvatures = profiles(poses)
    states = np.zeros((len(poses), poses.shape[1], len(COLUMNS)))
    states[:, 0] = initial
    for step in range(poses.shape[1] - 1):
        now = states[:, step]
        target = min(step + AHEAD, speeds.shape[1] - 1)
        ahead = np.minimum(np.arange(step, step + AHEAD), target)
        acceleration, steering_rate = _commands(now, poses[:, step], speeds[:, target], curvatures[:, ahead], vehicle)
        states[:, step + 1] = bicycle_step(now, acceleration, steering_rate, vehicle)
    return states


def profiles(poses: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Speeds and curvatures `(b, n - 1)` that lead through `poses` `(b, n, 3)`: regularized least squares."""
    batch, count = len(poses), poses.shape[1] - 1
    ways, turns = np.diff(poses[..., :2], axis=1), wrap_angle(np.diff(poses[..., 2], axis=1))
    heading = poses[:, :-1, 2]
    later = np.tri(count, count - 1, k=-1)  # the rates that a step has behind it
    integral = np.concatenate([np.ones((count, 1)), DT * later], axis=1)
    along = np.stack([np.cos(heading), np.sin(heading)], axis=-1)
    forward = (DT * along[..., None] * integral[None, :, None]).reshape(batch, 2 * count, count)
    # NAVSIM means to penalize the changes of the accelerations, but its matrix of differences lacks all but the last of
    # its upper entries: it penalizes the accelerations, and the last change. Scores are comparable only with the same.
    rates = -np.eye(count)[1:-1]
    rates[-1, -1] = 1.0
    speeds = _fit(forward, ways.reshape(batch, -1), ACCELERATION_PENALTY * rates.T @ rates) @ integral.T
    penalty = np.diag([CURVATURE_PENALTY, *([CURVATURE_RATE_PENALTY] * (count - 1))])
    curvatures = _fit(DT * speeds[..., None] * integral, turns, penalty) @ integral.T
    return speeds, curvatures


def bicycle_step(
    state: FloatArray, acceleration: FloatArray, steering_rate: FloatArray, vehicle: Vehicle = PACIFICA
) -> FloatArray:
    """The states `(b, 8)` a step later: Euler's, with first-order lags of both inputs `(b,)`."""
    x, y, heading, speed, now, steering, yaw_rate, _ = state.T
    reached = now + DT / (DT + ACCELERATION_LAG) * (acceleration - now)
    rate = DT / (DT + STEERING_LAG) * steering_rate
    turned = np.clip(steering + DT * rate, -MAX_STEERING, MAX_STEERING)
    faster = speed + DT * reached
    turning = faster * np.tan(turned) / vehicle.wheel_base
    return np.stack([
        x + DT * speed * np.cos(heading),
        y + DT * speed * np.sin(heading),
        wrap_angle(heading + DT * speed * np.tan(steering) / vehicle.wheel_base),
        faster,
        reached,
        turned,
        turning,
        (turning - yaw_rate) / DT,
    ], axis=-1)  # fmt: skip


def _fit(matrix: FloatArray, values: FloatArray, penalty: FloatArray) -> FloatArray:
    """The `x` `(b, k)` that minimize |matrix x - values|^2 + x' penalty x."""
    transposed = matrix.transpose(0, 2, 1)
    right = (transposed @ values[..., None])[..., 0]
    return np.einsum("bij,bj->bi", np.linalg.pinv(transposed @ matrix + penalty), right)


def _commands(
    state: FloatArray, pose: FloatArray, wanted: FloatArray, curvatures: FloatArray, vehicle: Vehicle
) -> tuple[FloatArray, FloatArray]:
    """Accelerations and steering rates `(b,)`.

    Args:
        state: The ego's states, `(b, 8)`.
        pose: The plans' poses now, `(b, 3)`.
        wanted: The plans' speeds ahead, `(b,)`.
        curvatures: Their curvatures up to there, `(b, AHEAD)`.
        vehicle: The ego's body.
    """
    speed = state[:, 3]
    span = AHEAD * DT
    acceleration = -span * SPEED_WEIGHT * (speed - wanted) / (span**2 * SPEED_WEIGHT + 1.0)
    x, y = state[:, 0] - pose[:, 0], state[:, 1] - pose[:, 1]
    heading = pose[:, 2]
    error = np.stack([
        y * np.cos(heading) - x * np.sin(heading), wrap_angle(state[:, 2] - heading), state[:, 5],
    ], axis=-1)  # fmt: skip
    speeds = speed[:, None] + DT * acceleration[:, None] * np.arange(AHEAD)
    steering_rate = _steering_rate(error, speeds, curvatures, vehicle)
    stops = (wanted <= STOPPING_SPEED) & (speed <= STOPPING_SPEED)
    return np.where(stops, -STOPPING_GAIN * (speed - wanted), acceleration), np.where(stops, 0.0, steering_rate)


def _steering_rate(error: FloatArray, speeds: FloatArray, curvatures: FloatArray, vehicle: Vehicle) -> FloatArray:
    """The constant steering rate `(b,)` that costs least after `AHEAD` steps of the linearized lateral dynamics.

    `error` `(b, 3)`: lateral error, heading error, steering angle. They, the effect of the rate, and what the plan's
    curvature adds are carried through the steps.
    """
    effect = np.zeros_like(error)
    reached = error.copy()
    for k in range(AHEAD):
        way = DT * speeds[:, k]
        for vector in (reached, effect):
            lateral, heading, steering = vector.T.copy()
            vector[:, 0] = lateral + way * heading
            vector[:, 1] = heading + way * steering / vehicle.wheel_base
        reached[:, 1] -= way * curvatures[:, k]
        effect[:, 2] += DT
    reached[:, 1:] = wrap_angle(reached[:, 1:])
    weights = np.array(LATERAL_WEIGHTS)
    return -(effect * weights * reached).sum(axis=1) / ((effect**2 * weights).sum(axis=1) + 1.0)
