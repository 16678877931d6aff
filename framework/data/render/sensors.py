"""Sensor inputs: each turns a sensor into rows in the ego frame for its encoder, and placeholders in the prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Protocol

import numpy as np
from annotated_types import Interval

from framework.recipe.component import component
from framework.recipe.ranges import Metres, PositiveCount, Tokens
from framework.scene.frames import apply
from framework.scene.lens import rays
from framework.scene.types import CLASSES, Camera, FloatArray, Scene


class SensorInput(Protocol):
    """The input of one sensor's encoder."""

    placeholder: str
    """The special token that the encoder's embeddings replace."""
    channels: int
    """Values of a row."""
    needs: tuple[str, ...]
    """The fields of a scene that it is made of: `check` compares them with what sources lack."""

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
    needs: tuple[str, ...] = ("lidar",)
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
    needs: tuple[str, ...] = ("radar",)
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
    needs: tuple[str, ...] = ("perception",)
    channels = 11

    def __init__(self, max_boxes: PositiveCount = 32) -> None:
        self.max_boxes = max_boxes

    def rows(self, scene: Scene) -> FloatArray | None:
        """See `SensorInput`."""
        if scene.perception is None or len(scene.perception) == 0:
            return None
        boxes = scene.perception.nearest(self.max_boxes)
        scores = np.ones(len(boxes)) if boxes.scores is None else boxes.scores
        labels = np.array([CLASSES.index(label) for label in boxes.labels], dtype=np.float64)
        rows = np.concatenate([np.nan_to_num(boxes.values), labels[:, None], scores[:, None]], axis=1)
        return rows.astype(np.float32)

    def placeholders(self, rows: FloatArray) -> int:
        """Returns one a box."""
        return len(rows)


@component
class EgoInput:
    """The ego's history, one token per state: (x, y, heading, speed)."""

    placeholder = "<|ego|>"
    needs: tuple[str, ...] = ("history",)
    channels = 4

    def rows(self, scene: Scene) -> FloatArray | None:
        """See `SensorInput`."""
        return None if scene.history is None else scene.history.states.astype(np.float32)

    def placeholders(self, rows: FloatArray) -> int:
        """Returns one a state."""
        return len(rows)


@component
class CalibrationInput:
    """How each camera looks into the world, one token each, so that a model can be trained on rigs that differ.

    A row is the camera's position x, y, z (m), then the unit directions, in the ego frame, of what it sees at the
    middles of `grid` x `grid` cells of its image, row by row: they follow from intrinsic, lens and extrinsic together.
    A direction is zero where the lens shows nothing. Rows come in the order of the prompt's images.

    Args:
        grid: Cells along each side of the image.
        cameras: Names of the cameras, in order, as in `data.cameras`; None takes all.
    """

    placeholder = "<|calibration|>"
    needs: tuple[str, ...] = ("cameras",)

    def __init__(self, grid: Annotated[int, Interval(ge=2, le=16)] = 4, cameras: Sequence[str] | None = None) -> None:
        self.grid = grid
        self.cameras = cameras
        self.channels = 3 + 3 * grid * grid

    def rows(self, scene: Scene) -> FloatArray | None:
        """See `SensorInput`."""
        present = {camera.name: camera for camera in scene.cameras}
        names = present if self.cameras is None else [name for name in self.cameras if name in present]
        rows = [self._row(present[name]) for name in names]
        return np.stack(rows).astype(np.float32) if rows else None

    def placeholders(self, rows: FloatArray) -> int:
        """Returns one a camera."""
        return len(rows)

    def _row(self, camera: Camera) -> FloatArray:
        middles = (np.arange(self.grid) + 0.5) / self.grid
        down, right = np.meshgrid(middles * camera.height, middles * camera.width, indexing="ij")
        directions = np.nan_to_num(rays(camera, np.stack([right.ravel(), down.ravel()], axis=1)))
        return np.concatenate([camera.extrinsic[:3, 3], directions.ravel()])


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
