"""Points of a LiDAR in files of single precision numbers, as KITTI and nuScenes store them."""

from __future__ import annotations

from collections.abc import MutableMapping
from pathlib import Path

import numpy as np

from framework.scene.check import BRIGHTEST, FARTHEST_MAP
from framework.scene.types import FloatArray, SceneError

BROKEN = "LiDAR point that is not finite"
"""What points without a place or an intensity are named."""


def read_points(path: Path, channels: int, left_out: MutableMapping[str, int] | None = None) -> FloatArray:
    """Returns the points of a file `(n, channels)` float32, of which the first four are x, y, z (m) and intensity.
    Those that are not finite are left out, which `left_out` counts.

    Raises `SceneError` for a number of channels that is none, for a file that is empty or ends within a row, and where
    no point is finite or one is where none can be: the bytes are others, or rows have another number of channels.
    """
    if not isinstance(channels, int) or channels < 4:
        raise SceneError(f"{path}: {channels!r} is no number of channels, which are 4 at least; give the layout's")
    encoded = path.read_bytes()
    row = 4 * channels
    if not encoded or len(encoded) % row:
        raise SceneError(
            f"{path}: {len(encoded)} bytes do not make rows of {row}: the file is truncated; fetch it again"
        )
    rows: FloatArray = np.frombuffer(encoded, dtype="<f4").reshape(-1, channels).astype(np.float32)
    points: FloatArray = rows[np.isfinite(rows[:, :4]).all(axis=1)]
    if not len(points):
        raise SceneError(f"{path}: no point is finite; fetch it again")
    if (np.abs(points[:, :3]) > FARTHEST_MAP).any() or (np.abs(points[:, 3]) > BRIGHTEST).any():
        raise SceneError(
            f"{path}: a point is farther than {FARTHEST_MAP:.0f} m, or brighter than {BRIGHTEST:.0f}: it is damaged, or"
            f" its rows have not {channels} numbers; fetch it again"
        )
    if left_out is not None and len(points) < len(rows):
        left_out[BROKEN] = left_out.get(BROKEN, 0) + len(rows) - len(points)
    return points
