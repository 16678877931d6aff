"""Asks `python -m framework serve` for a plan. It needs the standard library and numpy alone, from Python 3.8 on."""

from __future__ import annotations

import base64
import json
import math
import os
import struct
import urllib.error
import urllib.request
import zlib
from typing import Any

import numpy as np

URL, KEY, TIMEOUT = "DRIVE_URL", "DRIVE_KEY", "DRIVE_TIMEOUT_S"
"""Environment variables: the server, by default on this machine; its API key; the longest wait (s)."""


def plan(scene: dict[str, Any]) -> np.ndarray:
    """The plan `(time, 5)` about a scene, as `POST /v1/drive` takes it: t (s), x, y (m), heading (rad), speed (m/s).

    Raises `RuntimeError` with the server's message for a scene that it refuses, and where no plan was answered.
    """
    headers = {"Content-Type": "application/json"}
    if os.environ.get(KEY):
        headers["Authorization"] = "Bearer " + os.environ[KEY]
    url = os.environ.get(URL, "http://127.0.0.1:8000").rstrip("/") + "/v1/drive"
    request = urllib.request.Request(url, json.dumps({**scene, "tasks": ["drive"]}).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=float(os.environ.get(TIMEOUT, "60"))) as response:
            answer = json.load(response)
    except urllib.error.HTTPError as error:
        raise RuntimeError(f"{url}: {error.code}: {error.read().decode(errors='replace')[:500]}") from error
    if answer["plan"] is None:
        raise RuntimeError(f"{url}: the answer spells no plan")
    return np.array([[state[key] for key in ("t", "x", "y", "heading", "speed")] for state in answer["plan"]])


def camera(name: str, image: np.ndarray, intrinsic: np.ndarray, extrinsic: np.ndarray) -> dict[str, Any]:
    """A camera of a scene: image `(height, width, 3)` uint8 RGB, intrinsics `(3, 3)`, camera to ego `(4, 4)`."""
    return {"name": name, "image": base64.b64encode(png(image)).decode(), "intrinsic": np.asarray(intrinsic).tolist(),
            "extrinsic": np.asarray(extrinsic).tolist()}  # fmt: skip


def png(image: np.ndarray) -> bytes:
    """A PNG of an image `(height, width, 3)` uint8: lossless, and no environment lacks what writes it."""
    height, width, _ = image.shape
    rows = np.concatenate([np.zeros((height, 1), np.uint8), np.ascontiguousarray(image).reshape(height, -1)], axis=1)
    parts = (
        (b"IHDR", struct.pack(">2I5B", width, height, 8, 2, 0, 0, 0)), (b"IDAT", zlib.compress(rows.tobytes(), 1)),
        (b"IEND", b""),
    )  # fmt: skip
    chunks = [struct.pack(">I", len(of)) + kind + of + struct.pack(">I", zlib.crc32(kind + of)) for kind, of in parts]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def lidar(points: np.ndarray, extrinsic: np.ndarray) -> dict[str, Any]:
    """The LiDAR of a scene: points `(n, 4)` x, y, z, intensity; LiDAR to ego `(4, 4)`."""
    rows = np.ascontiguousarray(points, "<f4")
    return {"points": base64.b64encode(rows.tobytes()).decode(), "extrinsic": np.asarray(extrinsic).tolist()}


def history(times: np.ndarray, poses: np.ndarray, speeds: np.ndarray, rate_hz: float = 4.0) -> dict[str, Any]:
    """The ego's past at an even rate, of poses `(n, 3)` x, y, heading in the ego frame and speeds `(n,)` at `times`
    `(n,)`, the last of them now, 0 s. What is before the first pose is continued at its speed.
    """
    even = -np.arange(round(1.5 * rate_hz), -1, -1) / rate_hz
    headings = np.unwrap(poses[:, 2])
    columns = [np.interp(even, times, column) for column in (poses[:, 0], poses[:, 1], headings, speeds)]
    before = np.minimum(even - times[0], 0.0) * speeds[0]
    columns[0] = columns[0] + before * math.cos(headings[0])
    columns[1] = columns[1] + before * math.sin(headings[0])
    return {"states": np.stack(columns, axis=1).tolist(), "rate_hz": rate_hz}
