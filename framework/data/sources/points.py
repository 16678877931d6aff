"""Points of a LiDAR in files of single precision numbers, as KITTI and nuScenes store them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from framework.scene.types import FloatArray, SceneError


def read_points(path: Path, channels: int) -> FloatArray:
    """Returns the points of a file `(n, channels)` float32, of which the first four are x, y, z (m) and intensity.

    Raises `SceneError` for a number of channels that is none, and for a file that is empty or ends within a row.
    """
    if not isinstance(channels, int) or channels < 4:
        raise SceneError(f"{path}: {channels!r} is no number of channels, which are 4 at least; give the layout's")
    encoded = path.read_bytes()
    row = 4 * channels
    if not encoded or len(encoded) % row:
        raise SceneError(
            f"{path}: {len(encoded)} bytes do not make rows of {row}: the file is truncated; fetch it again"
        )
    points: FloatArray = np.frombuffer(encoded, dtype="<f4").reshape(-1, channels).astype(np.float32)
    return points
