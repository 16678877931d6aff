"""A trajectory as plain text: its positions."""

from __future__ import annotations

import math
import re

import numpy as np

from framework.model.codecs.control_tokens import expert_states
from framework.model.codecs.decimals import decimal_pattern, spell_decimal
from framework.scene.types import HORIZON_S, RATE_HZ, FloatArray, Scene, Trajectory


class WaypointCodec:
    """`(x,y) (x,y) ...` in metres of the ego frame with `decimals` places, one point for each of `steps` periods of
    1 / `rate_hz` seconds: EMMA's form (arXiv 2410.23262), which needs no new tokens.

    Decoded positions are those spelled. Headings and speeds are those of the way from the point before to the point
    after; the ego at the origin, heading along x, comes before the first.
    """

    def __init__(self, steps: int = round(HORIZON_S * RATE_HZ), rate_hz: float = RATE_HZ, decimals: int = 1) -> None:
        self.steps, self.rate_hz, self.decimals = steps, rate_hz, decimals
        number = decimal_pattern(decimals)
        self._point = rf"\({number},{number}\)"
        self._answer = re.compile(rf"{self._point}(?: {self._point}){{{steps - 1}}}")

    @property
    def tokens(self) -> tuple[str, ...]:
        """None: the form is plain text."""
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
        """See `ActionCodec`. Raises `SceneError` also for a future too far away to be spelled."""
        field = f"scene {scene.id}: a coordinate of `future`"
        points = expert_states(scene, self.steps, self.rate_hz)[:, :2].tolist()
        return " ".join(f"({','.join(spell_decimal(v, self.decimals, field) for v in point)})" for point in points)

    def decode(self, text: str, scene: Scene) -> Trajectory | None:
        """See `ActionCodec`; the points say it all, so that nothing of `scene` is needed."""
        if not self._answer.fullmatch(text):
            return None
        points = np.array([[float(v) for v in point[1:-1].split(",")] for point in text.split(" ")])
        return Trajectory(self._states(points), self.rate_hz)

    def _states(self, points: FloatArray) -> FloatArray:
        """States `(steps, 4)` that pass through `points` `(steps, 2)`."""
        path = np.concatenate([np.zeros((1, 2)), points])
        before, after = path[:-1], np.concatenate([path[2:], path[-1:]])
        way = after - before
        periods = np.r_[np.full(self.steps - 1, 2.0), 1.0]
        length = np.hypot(way[:, 0], way[:, 1])
        heading, headings = 0.0, []
        for (dx, dy), moved in zip(way.tolist(), length.tolist(), strict=True):
            if moved > 1.5 * 10.0**-self.decimals:  # less is rounding, and a standing vehicle does not turn
                heading = math.atan2(dy, dx)
            headings.append(heading)
        return np.column_stack([points, headings, length / periods * self.rate_hz])
