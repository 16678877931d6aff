"""A trajectory as discrete control tokens: acceleration and curvature of a unicycle, one pair per step."""

from __future__ import annotations

import re

import numpy as np

from framework.scene.kinematics import unicycle_rollout
from framework.scene.types import HORIZON_S, RATE_HZ, FloatArray, Scene, SceneError, Trajectory

_LOOKAHEAD_S = 0.5
"""How far speed and heading errors are projected when a step's control is chosen."""
_TIE = 1e-6
"""Among controls that lead to the same place (any curvature at a standstill) the gentlest is chosen."""


class ControlTokenCodec:
    """`<|accel_i|><|curve_j|>` for each of `steps` periods of 1 / `rate_hz` seconds.

    Accelerations lie evenly spaced in +-`acceleration_limit` (m/s^2). Curvatures lie in +-`curvature_limit` (1/m), spaced by the square of their index,
    sign kept: a bend matters in proportion to the speed squared, so the small curvatures of fast driving need the finest steps. `bins` (of each) is odd,
    so that zero is among them.

    Encoding closes the loop: each step takes the pair whose *decoded* state comes nearest to the expert's, there and half a second on, so that
    rounding is corrected by the next step and never accumulates. Decoding rolls the unicycle out from the scene's current speed.
    """

    def __init__(
        self,
        bins: int = 65,
        acceleration_limit: float = 8.0,
        curvature_limit: float = 0.2,
        steps: int = round(HORIZON_S * RATE_HZ),
        rate_hz: float = RATE_HZ,
    ) -> None:
        if bins < 3 or bins % 2 == 0:
            raise ValueError(f"codecs.action.bins is {bins}: it must be odd and at least 3, so that zero is one of the bins")
        self.bins, self.steps, self.rate_hz = bins, steps, rate_hz
        even = np.linspace(-1.0, 1.0, bins)
        self.accelerations: FloatArray = acceleration_limit * even
        self.curvatures: FloatArray = curvature_limit * even * np.abs(even)
        pairs = np.stack(np.meshgrid(self.accelerations, self.curvatures, indexing="ij"), axis=-1)
        self._pairs: FloatArray = pairs.reshape(-1, 1, 2)
        self._effort: FloatArray = _TIE * (even[:, None] ** 2 + even[None] ** 2).reshape(-1)
        self._step = re.compile(r"<\|accel_(\d+)\|><\|curve_(\d+)\|>")

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
            f"Answer with {self.steps} control steps of {1.0 / self.rate_hz:g} s, each an acceleration token and a curvature token; "
            "acceleration forward in m/s^2, curvature positive to the left in 1/m."
        )

    def encode(self, scene: Scene) -> str:
        """See `ActionCodec`."""
        target = expert_states(scene, self.steps, self.rate_hz)
        state = initial_state(scene)
        text = []
        for wanted in target:
            reached = unicycle_rollout(np.broadcast_to(state, (len(self._pairs), 4)), self._pairs, 1.0 / self.rate_hz)[:, 0]
            error = np.square(reached[:, :2] - wanted[:2]).sum(-1)
            error += np.square(_ahead(reached) - _ahead(wanted)).sum(-1)
            best = int(np.argmin(error + self._effort))
            state = reached[best]
            text.append(f"<|accel_{best // self.bins}|><|curve_{best % self.bins}|>")
        return "".join(text)

    def decode(self, text: str, scene: Scene) -> Trajectory | None:
        """See `ActionCodec`."""
        found = self._step.findall(text)
        if len(found) != self.steps or self._step.sub("", text).strip():
            return None
        bins = np.array(found, dtype=np.int64)
        if (bins >= self.bins).any():
            return None
        controls = np.stack([self.accelerations[bins[:, 0]], self.curvatures[bins[:, 1]]], axis=-1)
        return Trajectory(unicycle_rollout(initial_state(scene), controls, 1.0 / self.rate_hz), self.rate_hz)


def initial_state(scene: Scene) -> FloatArray:
    """The current state `(4,)`: the origin, with the history's last speed. Raises `SceneError` without a history."""
    if scene.history is None or not len(scene.history.states):
        raise SceneError(f"scene {scene.id}: field `history` is missing, so the current speed is unknown; a drive task needs it")
    return np.array([0.0, 0.0, 0.0, float(scene.history.states[-1, 3])])


def expert_states(scene: Scene, steps: int, rate_hz: float) -> FloatArray:
    """The future's states `(steps, 4)`. Raises `SceneError` when they are missing, too few, not finite or at another rate."""
    future = scene.future
    if future is None:
        raise SceneError(f"scene {scene.id}: field `future` is missing; an action cannot be spelled without it")
    if future.rate_hz != rate_hz or len(future.states) < steps:
        raise SceneError(
            f"scene {scene.id}: field `future` has {len(future.states)} states at {future.rate_hz:g} Hz, the codec needs {steps} at "
            f"{rate_hz:g} Hz; set codecs.action.steps and rate_hz to the data's, or convert the data anew"
        )
    states = np.asarray(future.states[:steps], dtype=np.float64)
    if not np.isfinite(states).all():
        raise SceneError(f"scene {scene.id}: field `future` holds NaN or infinity; repair the recording or drop the scene")
    return states


def _ahead(states: FloatArray) -> FloatArray:
    """Where the vehicle would be after the look-ahead at constant speed and heading, `(..., 2)`."""
    direction = np.stack([np.cos(states[..., 2]), np.sin(states[..., 2])], axis=-1)
    return states[..., :2] + _LOOKAHEAD_S * states[..., 3:4] * direction
