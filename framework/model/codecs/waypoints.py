"""Codec between trajectories and plain text: the list of positions."""

from __future__ import annotations

import math
import re

import numpy as np

from framework.model.codecs.control_tokens import expert_states
from framework.model.codecs.decimals import decimal_pattern, spell_decimal
from framework.recipe.component import component
from framework.recipe.ranges import Decimals, Rate, Steps
from framework.scene.types import HORIZON_STEPS, RATE_HZ, FloatArray, Scene, Trajectory


@component
class WaypointCodec:
    """Encodes a trajectory as `(x,y) (x,y) ...`, in metres of the ego frame: EMMA's form (arXiv 2410.23262), which
    needs no new tokens.

    Decoded positions are those of the text. Headings and speeds follow from central differences; the point before the
    first is the ego at the origin, heading along x.

    Args:
        steps: Number of points.
        rate_hz: Points per second.
        decimals: Decimal places of the coordinates.
    """

    def __init__(self, steps: Steps = HORIZON_STEPS, rate_hz: Rate = RATE_HZ, decimals: Decimals = 1) -> None:
        self.steps, self.rate_hz, self.decimals = steps, rate_hz, decimals
        number = decimal_pattern(decimals)
        self._point = rf"\({number},{number}\)"
        self._answer = re.compile(rf"{self._point}(?: {self._point}){{{steps - 1}}}")

    @property
    def tokens(self) -> tuple[str, ...]:
        """No tokens: the form is plain text."""
        return ()

    @property
    def grammar(self) -> str:
        """See `ActionCodec`."""
        return f'start: POINT (" " POINT){{{self.steps - 1}}}\nPOINT: /{self._point}/\n'

    @property
    def instruction(self) -> str:
        """See `ActionCodec`."""
        return (
            f"Answer with {self.steps} waypoints (x,y), one every {1.0 / self.rate_hz:g} s, in metres, ego frame: "
            "x forward, y left."
        )

    def encode(self, scene: Scene) -> str:
        """See `ActionCodec`. Raises `SceneError` also for positions too far away to be written."""
        field = f"scene {scene.id}: a coordinate of `future`"
        points = expert_states(scene, self.steps, self.rate_hz)[:, :2].tolist()
        return " ".join(f"({','.join(spell_decimal(v, self.decimals, field) for v in point)})" for point in points)

    def decode(self, text: str, scene: Scene) -> Trajectory | None:
        """See `ActionCodec`; `scene` is not used."""
        if not self._answer.fullmatch(text):
            return None
        points = np.array([[float(v) for v in point[1:-1].split(",")] for point in text.split(" ")])
        return Trajectory(self._states(points), self.rate_hz)

    def _states(self, points: FloatArray) -> FloatArray:
        """States `(steps, 4)` that pass through `points` `(steps, 2)`."""
        path = np.concatenate([np.zeros((1, 2)), points])
        before, after = path[:-1], np.concatenate([path[2:], path[-1:]])
        step = after - before
        periods = np.r_[np.full(self.steps - 1, 2.0), 1.0]
        length = np.hypot(step[:, 0], step[:, 1])
        heading, headings = 0.0, []
        for (dx, dy), moved in zip(step.tolist(), length.tolist(), strict=True):
            if moved > 1.5 * 10.0**-self.decimals:  # less is rounding, and a standing vehicle does not turn
                heading = math.atan2(dy, dx)
            headings.append(heading)
        return np.column_stack([points, headings, length / periods * self.rate_hz])
