"""Codec between trajectories and discrete control tokens: acceleration and curvature of a unicycle, a pair per step."""

from __future__ import annotations

import cmath
import math
import re
from bisect import bisect
from collections.abc import Callable
from itertools import pairwise
from typing import Annotated

import numpy as np
from annotated_types import Interval

from framework.recipe.component import component
from framework.recipe.ranges import Acceleration, Curvature, Rate, Steps
from framework.scene.kinematics import unicycle_rollout
from framework.scene.types import HORIZON_STEPS, RATE_HZ, FloatArray, Scene, SceneError, Trajectory

LOOKAHEAD_S = 0.5
"""Look-ahead (s) of a control beyond the end of its step, by which errors of speed and heading count as well."""
CURVATURE_RIDGE = 1e-4
"""Regularizes the target curvature (m^4): a vehicle that barely moves cannot steer, and does not try."""
SHORTEST_STOP_M = 1e-3
"""Braking distance (m) of a vehicle that should have stopped already."""


@component
class ControlTokenCodec:
    """Encodes a trajectory as `<|accel_i|><|curve_j|>` for each of its steps.

    Accelerations are spaced evenly. Curvatures are spaced by the square of their index, with its sign: lateral
    acceleration grows with the speed squared, so that the small curvatures of fast driving need the finest bins.

    Encoding is closed-loop: each step inverts the unicycle from the state that *decoding* would have reached, so that
    the next step corrects the rounding of the last and errors do not accumulate. Decoding rolls the unicycle out from
    the scene's current speed.

    Args:
        bins: Number of accelerations and of curvatures, at least 3 and odd, so that zero is a bin.
        acceleration_limit: Largest acceleration either way, in m/s^2.
        curvature_limit: Largest curvature either way, in 1/m.
        steps: Number of steps.
        rate_hz: Steps per second.

    Raises `ValueError` for an even number of bins.
    """

    def __init__(
        self,
        bins: Annotated[int, Interval(ge=3, le=1025)] = 65,
        acceleration_limit: Acceleration = 8.0,
        curvature_limit: Curvature = 0.2,
        steps: Steps = HORIZON_STEPS,
        rate_hz: Rate = RATE_HZ,
    ) -> None:
        if bins < 3 or bins % 2 == 0:
            raise ValueError(f"codecs.action.bins is {bins}: give an odd number, at least 3, so that zero is a bin")
        self.bins, self.steps, self.rate_hz = bins, steps, rate_hz
        even = np.linspace(-1.0, 1.0, bins)
        self.accelerations: FloatArray = acceleration_limit * even
        self.curvatures: FloatArray = curvature_limit * even * np.abs(even)
        self._acceleration = _Nearest(self.accelerations)
        self._curvature = _Nearest(self.curvatures)
        self._pair = re.compile(r"<\|accel_([0-9]+)\|><\|curve_([0-9]+)\|>")

    @property
    def tokens(self) -> tuple[str, ...]:
        """`<|accel_0|>` ... then `<|curve_0|>` ..., `bins` of each."""
        return tuple(f"<|{name}_{i}|>" for name in ("accel", "curve") for i in range(self.bins))

    @property
    def grammar(self) -> str:
        """See `ActionCodec`."""
        accelerations, curvatures = (" | ".join(self.tokens[k * self.bins : (k + 1) * self.bins]) for k in (0, 1))
        return f"start: step{{{self.steps}}}\nstep: accel curve\naccel: {accelerations}\ncurve: {curvatures}\n"

    @property
    def instruction(self) -> str:
        """See `ActionCodec`."""
        return (
            f"Answer with {self.steps} control steps of {1.0 / self.rate_hz:g} s, each an acceleration token and a "
            "curvature token; acceleration forward in m/s^2, curvature positive to the left in 1/m."
        )

    def encode(self, scene: Scene) -> str:
        """See `ActionCodec`."""
        aims = _aims(expert_states(scene, self.steps, self.rate_hz))
        return _spell(self._controls(float(initial_state(scene)[3]), aims))

    def decode(self, text: str, scene: Scene) -> Trajectory | None:
        """See `ActionCodec`. Raises `SceneError` when the scene has no history."""
        pairs = [(int(i), int(j)) for i, j in self._pair.findall(text)]
        if len(pairs) != self.steps or _spell(pairs) != text or max(map(max, pairs)) >= self.bins:
            return None
        controls = np.array([(self.accelerations[i], self.curvatures[j]) for i, j in pairs])
        return Trajectory(unicycle_rollout(initial_state(scene), controls, 1.0 / self.rate_hz), self.rate_hz)

    def _controls(self, speed: float, aims: list[list[float]]) -> list[tuple[int, int]]:
        """Bins of the controls that steer from the origin, at `speed`, through `aims` (see `steer`)."""
        controls = steer(
            speed,
            aims,
            1.0 / self.rate_hz,
            lambda wanted: float(self.accelerations[self._acceleration(wanted)]),
            lambda wanted: float(self.curvatures[self._curvature(wanted)]),
        )
        return [(self._acceleration(acceleration), self._curvature(curvature)) for acceleration, curvature in controls]


class _Nearest:
    """The index of the value nearest to a number, among ascending `values`."""

    def __init__(self, values: FloatArray) -> None:
        self._edges = [(low + high) / 2 for low, high in pairwise(values.tolist())]

    def __call__(self, number: float) -> int:
        return bisect(self._edges, number)


def steer(
    speed: float,
    aims: list[list[float]],
    dt: float,
    acceleration: Callable[[float], float],
    curvature: Callable[[float], float],
) -> list[tuple[float, float]]:
    """Controls that steer from the origin, at `speed`, through `aims`: the expert's positions after each step of `dt`
    and the look-ahead. `acceleration` and `curvature` give the control nearest to the one that is wanted.

    It computes on scalars, because it runs for every sample: on arrays of one state `unicycle_step` takes fifty times
    as long.
    """
    controls = []
    position, heading = 0j, 0.0
    for x, y in aims:
        aim = (complex(x, y) - position) * cmath.rect(1.0, -heading)
        chosen = acceleration(_aimed_acceleration(math.copysign(abs(aim), aim.real), speed, dt))
        distance, speed = _advance(speed, chosen, dt)
        reach = distance * (distance / 2 + LOOKAHEAD_S * speed)
        curve = curvature(aim.imag * reach / (reach * reach + CURVATURE_RIDGE))
        half = curve * distance / 2
        position += cmath.rect(distance * (math.sin(half) / half if half else 1.0), heading + half)
        heading += 2 * half
        controls.append((chosen, curve))
    return controls


def expert_controls(scene: Scene, steps: int, rate_hz: float, limits: tuple[float, float]) -> FloatArray:
    """The controls `(steps, 2)` that drive the future of `scene` (see `steer`), at most `limits` either way. Raises
    what `expert_states` and `initial_state` raise.
    """
    hardest, sharpest = limits
    controls = steer(
        float(initial_state(scene)[3]),
        _aims(expert_states(scene, steps, rate_hz)),
        1.0 / rate_hz,
        lambda wanted: min(max(wanted, -hardest), hardest),
        lambda wanted: min(max(wanted, -sharpest), sharpest),
    )
    return np.array(controls)


def _aims(expert: FloatArray) -> list[list[float]]:
    """The points `(steps, 2)` that the states `(steps, 4)` look ahead to."""
    aims: list[list[float]] = (
        expert[:, :2] + LOOKAHEAD_S * expert[:, 3:] * np.stack([np.cos(expert[:, 2]), np.sin(expert[:, 2])], 1)
    ).tolist()
    return aims


def _aimed_acceleration(distance: float, speed: float, dt: float) -> float:
    """The constant acceleration over `dt`, followed by constant speed over the look-ahead, that covers `distance`."""
    acceleration = (distance - speed * (dt + LOOKAHEAD_S)) / (dt * dt / 2 + LOOKAHEAD_S * dt)
    if speed + acceleration * dt >= 0:
        return acceleration
    return -speed * speed / (2 * max(distance, SHORTEST_STOP_M))


def _advance(speed: float, acceleration: float, dt: float) -> tuple[float, float]:
    """Distance covered in `dt` and speed after it, as in `unicycle_step`."""
    reached = speed + acceleration * dt
    if reached < 0:
        return speed * speed / (-2 * acceleration), 0.0
    return speed * dt + acceleration * dt * dt / 2, reached


def _spell(pairs: list[tuple[int, int]]) -> str:
    return "".join(f"<|accel_{i}|><|curve_{j}|>" for i, j in pairs)


def initial_state(scene: Scene) -> FloatArray:
    """The current state `(4,)`: the origin with the history's last speed. Raises `SceneError` without a history."""
    if scene.history is None or not len(scene.history.states):
        raise SceneError(
            f"scene {scene.id}: field `history` is missing, so the current speed is unknown; task drive needs it"
        )
    return np.array([0.0, 0.0, 0.0, float(scene.history.states[-1, 3])])


def expert_states(scene: Scene, steps: int, rate_hz: float) -> FloatArray:
    """The future's states `(steps, 4)`. Raises `SceneError` if they are missing, too few, not finite or at another
    rate.
    """
    future = scene.future
    if future is None:
        raise SceneError(f"scene {scene.id}: field `future` is missing; an action cannot be encoded without it")
    if future.rate_hz != rate_hz or len(future.states) < steps:
        raise SceneError(
            f"scene {scene.id}: field `future` has {len(future.states)} states at {future.rate_hz:g} Hz, the codec "
            f"needs {steps} at {rate_hz:g} Hz; set codecs.action.steps and rate_hz to the data's, or convert it again"
        )
    states = np.asarray(future.states[:steps], dtype=np.float64)
    if not np.isfinite(states).all():
        raise SceneError(f"scene {scene.id}: field `future` holds NaN or infinity; repair the recording or drop it")
    return states
