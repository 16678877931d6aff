"""Small datasets in LeRobot's format: consecutive scenes of a turning vehicle with a tiny camera.

They are the same on every call, so that the figures which lerobot reads from them hold for every test.
"""

from __future__ import annotations

import io
from collections.abc import Iterator

import numpy as np
from PIL import Image

from framework.data.sources.tracks import FUTURE, PAST, SECOND
from framework.scene.frames import rigid
from framework.scene.kinematics import unicycle_rollout
from framework.scene.types import RATE_HZ, Camera, Lens, Scene, Trajectory

RATE = 4.0
SPEED, BRAKING, CURVATURE = 8.0, -0.25, 0.02
INTRINSIC = np.array([[40.0, 0.0, 32.0], [0.0, 40.0, 24.0], [0.0, 0.0, 1.0]])
LENS = Lens("fisheye", np.array([0.02, -0.01, 0.0, 0.0]))
MOUNT = rigid(np.array([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]]), np.array([1.2, 0.1, 1.5]))


def picture(log: int, row: int) -> Image.Image:
    """An image whose left half tells the row, and whose right half the log."""
    pixels = np.zeros((48, 64, 3), dtype=np.uint8)
    pixels[:, :32, 0], pixels[:, 32:, 1] = 40 + 8 * row, 60 + 20 * (log % 8)
    return Image.fromarray(pixels)


def colours(image: bytes | Image.Image) -> tuple[float, float]:
    """Red of the left half and green of the right one."""
    opened = Image.open(io.BytesIO(image)) if isinstance(image, bytes) else image
    pixels = np.asarray(opened.convert("RGB"), dtype=float)
    half = pixels.shape[1] // 2
    return float(pixels[:, 4 : half - 4, 0].mean()), float(pixels[:, half + 4 : -4, 1].mean())


def drive(row: int, rate: float = RATE) -> tuple[Trajectory, Trajectory]:
    """Past and future of a row of a drive that brakes steadily in a bend."""
    speed = SPEED + BRAKING * row / rate
    controls = np.tile([BRAKING, CURVATURE], (FUTURE, 1))
    future = unicycle_rollout(np.array([0.0, 0.0, 0.0, speed]), controls, 1.0 / RATE_HZ)
    back = unicycle_rollout(np.array([0.0, 0.0, 0.0, speed]), np.tile([-BRAKING, CURVATURE], (PAST, 1)), 1.0 / RATE_HZ)
    past = np.c_[-back[::-1, 0], back[::-1, 1], -back[::-1, 2], back[::-1, 3]]
    return Trajectory(np.r_[past, [[0.0, 0.0, 0.0, speed]]]), Trajectory(future)


def scenes(logs: int = 2, rows: int = 6) -> Iterator[Scene]:
    """Scenes of some logs in the order of time; each log is a row longer than the one before."""
    for log in range(logs):
        for row in range(rows + log):
            encoded = io.BytesIO()
            picture(log, row).save(encoded, format="PNG")
            history, future = drive(row)
            yield Scene(
                id=f"made-{log}-{row}",
                kind="made",
                cameras=(Camera("front", (encoded.getvalue(),), np.zeros(1), INTRINSIC, MOUNT, 64, 48, lens=LENS),),
                history=history,
                future=future,
                command="left",
                caption="A bend.",
                provenance={"dataset": "made", "log": f"log {log}", "timestamp": str(round(row * SECOND / RATE))},
            )
