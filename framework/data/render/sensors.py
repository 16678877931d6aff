"""What a scene's sensors become before an encoder sees them: rows in the ego frame, and placeholders in the prompt."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from framework.scene.frames import apply
from framework.scene.types import CLASSES, FloatArray, Scene


class SensorInput(Protocol):
    """One sensor's way into the batch. `placeholder` is the special token that stands where its embeddings go."""

    placeholder: str
    channels: int

    def rows(self, scene: Scene) -> FloatArray | None:
        """Rows `(n, channels)` float32 in the ego frame, at least one; None when the scene lacks the sensor or it saw
        nothing.
        """
        ...

    def placeholders(self, rows: FloatArray) -> int:
        """How many tokens the encoder makes of `rows`."""
        ...


class LidarInput:
    """One sweep: (x, y, z, intensity) within `range_m` of the ego, at most `max_points`, as `tokens` tokens.

    When there are more, every k-th point is kept: the same points on every pass.
    """

    placeholder = "<|lidar|>"
    channels = 4

    def __init__(self, tokens: int, max_points: int = 4096, range_m: float = 51.2) -> None:
        self.tokens = tokens
        self.max_points = max_points
        self.range_m = range_m

    def rows(self, scene: Scene) -> FloatArray | None:
        """See `SensorInput`."""
        if scene.lidar is None:
            return None
        return _near(_in_ego(scene.lidar.points, scene.lidar.extrinsic), self.range_m, self.max_points)

    def placeholders(self, rows: FloatArray) -> int:
        """Always `tokens`."""
        return self.tokens


class RadarInput:
    """All returns: (x, y, z, radial velocity, radar cross-section) within `range_m`, at most `max_returns`, as
    `tokens` tokens.
    """

    placeholder = "<|radar|>"
    channels = 5

    def __init__(self, tokens: int, max_returns: int = 128, range_m: float = 80.0) -> None:
        self.tokens = tokens
        self.max_returns = max_returns
        self.range_m = range_m

    def rows(self, scene: Scene) -> FloatArray | None:
        """See `SensorInput`."""
        if scene.radar is None:
            return None
        return _near(_in_ego(scene.radar.returns, scene.radar.extrinsic), self.range_m, self.max_returns)

    def placeholders(self, rows: FloatArray) -> int:
        """Always `tokens`."""
        return self.tokens


class BoxesInput:
    """The perception stack's boxes, nearest first, one token each.

    Channels: the nine values of `Boxes` (unknown velocities are zero), the class's index in `CLASSES`, the score (1
    where unknown).
    """

    placeholder = "<|box|>"
    channels = 11

    def __init__(self, max_boxes: int = 32) -> None:
        self.max_boxes = max_boxes

    def rows(self, scene: Scene) -> FloatArray | None:
        """See `SensorInput`."""
        boxes = scene.perception
        if boxes is None or len(boxes) == 0:
            return None
        scores = np.ones(len(boxes)) if boxes.scores is None else boxes.scores
        labels = np.array([CLASSES.index(label) for label in boxes.labels], dtype=np.float64)
        rows = np.concatenate([np.nan_to_num(boxes.values), labels[:, None], scores[:, None]], axis=1)
        nearest = np.argsort(np.hypot(rows[:, 0], rows[:, 1]), kind="stable")[: self.max_boxes]
        return rows[nearest].astype(np.float32)

    def placeholders(self, rows: FloatArray) -> int:
        """One per box."""
        return len(rows)


class EgoInput:
    """The ego's history, one token per state: (x, y, heading, speed)."""

    placeholder = "<|ego|>"
    channels = 4

    def rows(self, scene: Scene) -> FloatArray | None:
        """See `SensorInput`."""
        return None if scene.history is None else scene.history.states.astype(np.float32)

    def placeholders(self, rows: FloatArray) -> int:
        """One per state."""
        return len(rows)


def _in_ego(rows: FloatArray, extrinsic: FloatArray) -> FloatArray:
    moved = np.array(rows, dtype=np.float64)
    moved[:, :3] = apply(extrinsic, moved[:, :3])
    return moved


def _near(rows: FloatArray, range_m: float, most: int) -> FloatArray | None:
    inside = rows[np.hypot(rows[:, 0], rows[:, 1]) <= range_m]
    if len(inside) == 0:
        return None
    kept = np.linspace(0, len(inside) - 1, min(most, len(inside))).round().astype(np.int64)
    return inside[kept].astype(np.float32)
