"""Sensor inputs: each turns a sensor into rows in the ego frame for its encoder, and placeholders in the prompt."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from framework.recipe.component import component
from framework.recipe.ranges import Metres, PositiveCount, Tokens
from framework.scene.frames import apply
from framework.scene.types import CLASSES, FloatArray, Scene


class SensorInput(Protocol):
    """The input of one sensor's encoder."""

    placeholder: str
    """The special token that the encoder's embeddings replace."""
    channels: int
    """Values of a row."""

    def rows(self, scene: Scene) -> FloatArray | None:
        """Returns rows `(n, channels)` float32 in the ego frame, at least one; None when the scene has no such sensor
        or it saw nothing.
        """
        ...

    def placeholders(self, rows: FloatArray) -> int:
        """Returns how many tokens the encoder makes of `rows`."""
        ...


@component
class LidarInput:
    """One LiDAR sweep, of rows (x, y, z, intensity).

    Args:
        tokens: Tokens that the encoder makes of a sweep.
        max_points: Points kept, evenly thinned: the same ones on every pass.
        range_m: Distance (m) from the ego within which points are kept.
    """

    placeholder = "<|lidar|>"
    channels = 4

    def __init__(self, tokens: Tokens, max_points: PositiveCount = 4096, range_m: Metres = 51.2) -> None:
        self.tokens = tokens
        self.max_points = max_points
        self.range_m = range_m

    def rows(self, scene: Scene) -> FloatArray | None:
        """See `SensorInput`."""
        if scene.lidar is None:
            return None
        return _near(_in_ego(scene.lidar.points, scene.lidar.extrinsic), self.range_m, self.max_points)

    def placeholders(self, rows: FloatArray) -> int:
        """Returns `tokens`."""
        return self.tokens


@component
class RadarInput:
    """All radar returns, of rows (x, y, z, radial velocity, radar cross-section).

    Args:
        tokens: Tokens that the encoder makes of the returns.
        max_returns: Returns kept, evenly thinned.
        range_m: Distance (m) from the ego within which returns are kept.
    """

    placeholder = "<|radar|>"
    channels = 5

    def __init__(self, tokens: Tokens, max_returns: PositiveCount = 128, range_m: Metres = 80.0) -> None:
        self.tokens = tokens
        self.max_returns = max_returns
        self.range_m = range_m

    def rows(self, scene: Scene) -> FloatArray | None:
        """See `SensorInput`."""
        if scene.radar is None:
            return None
        return _near(_in_ego(scene.radar.returns, scene.radar.extrinsic), self.range_m, self.max_returns)

    def placeholders(self, rows: FloatArray) -> int:
        """Returns `tokens`."""
        return self.tokens


@component
class BoxesInput:
    """The perception stack's boxes, nearest first, one token each.

    Channels: the nine values of `Boxes` (unknown velocities are zero), the class's index in `CLASSES`, the score (1
    where unknown).

    Args:
        max_boxes: Boxes kept.
    """

    placeholder = "<|box|>"
    channels = 11

    def __init__(self, max_boxes: PositiveCount = 32) -> None:
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
        """Returns one a box."""
        return len(rows)


@component
class EgoInput:
    """The ego's history, one token per state: (x, y, heading, speed)."""

    placeholder = "<|ego|>"
    channels = 4

    def rows(self, scene: Scene) -> FloatArray | None:
        """See `SensorInput`."""
        return None if scene.history is None else scene.history.states.astype(np.float32)

    def placeholders(self, rows: FloatArray) -> int:
        """Returns one a state."""
        return len(rows)


def _in_ego(rows: FloatArray, extrinsic: FloatArray) -> FloatArray:
    moved = np.array(rows, dtype=np.float64)
    moved[:, :3] = apply(extrinsic, moved[:, :3])
    return moved


def _near(rows: FloatArray, range_m: float, limit: int) -> FloatArray | None:
    inside = rows[np.hypot(rows[:, 0], rows[:, 1]) <= range_m]
    if len(inside) == 0:
        return None
    chosen = np.linspace(0, len(inside) - 1, min(limit, len(inside))).round().astype(np.int64)
    return inside[chosen].astype(np.float32)
