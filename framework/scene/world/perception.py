"""The built-in world's perception stack: boxes as a real one reports them, noisy, missing and sometimes wrong."""

from __future__ import annotations

import numpy as np

from framework.scene.frames import wrap_angle
from framework.scene.types import Boxes, FloatArray
from framework.scene.world.state import Snapshot

CONFUSED = {
    "car": "truck",
    "truck": "bus",
    "bus": "truck",
    "trailer": "truck",
    "construction_vehicle": "truck",
    "pedestrian": "bicycle",
    "motorcycle": "bicycle",
    "bicycle": "motorcycle",
    "traffic_cone": "barrier",
    "barrier": "traffic_cone",
    "animal": "pedestrian",
    "debris": "traffic_cone",
    "hose": "debris",
}
"""What a class is taken for when it is mistaken."""
GHOSTS = {"car": (4.5, 1.9, 1.6), "pedestrian": (0.6, 0.6, 1.75), "traffic_cone": (0.4, 0.4, 0.7)}
"""Classes, with their sizes (m), that are seen where nothing is; 0.25 of them in a scene on average."""
DEVIATIONS = np.array([0.2, 0.1, 0.05, 0.2, 0.05, 0.05, 0.03, 0.3, 0.15])
"""Standard deviations at 0 m of distance from the ego and sideways, height, size, yaw, and velocity (along and across
the line of sight); they double every 40 m."""


def perceive(snapshot: Snapshot, rng: np.random.Generator) -> Boxes:
    """Noisy boxes in the ego frame with scores.

    Noise, misses and confusions grow with distance, the latter two also where few LiDAR points fall (`boxes.points`,
    when known): on what is hidden. The score falls with all of them, and with the error actually made.
    """
    true = snapshot.boxes
    distance = np.hypot(true.values[:, 0], true.values[:, 1])
    seen = np.ones(len(true)) if true.points is None else np.minimum(true.points / 5.0, 1.0)
    certainty = np.clip(1.05 - distance / 150.0, 0.0, 1.0) * (0.4 + 0.6 * seen)
    noise = _noise(true.values, distance, rng)
    values = true.values + noise
    values[:, 3:6] = np.maximum(values[:, 3:6], 0.1)
    values[:, 6] = wrap_angle(values[:, 6])
    mistaken = rng.random(len(true)) < 0.15 * (1.0 - certainty) + 0.01
    labels = [CONFUSED[label] if wrong else label for label, wrong in zip(true.labels, mistaken, strict=True)]
    off = np.minimum(np.hypot(noise[:, 0], noise[:, 1]), 1.5)
    scores = np.clip(certainty - 0.2 * off - 0.2 * mistaken + rng.normal(0, 0.08, len(true)), 0.05, 0.99)
    detected = np.flatnonzero(rng.random(len(true)) < 0.6 + 0.4 * np.sqrt(certainty))
    ghosts, ghost_labels, ghost_scores = _ghosts(rng)
    return Boxes(
        np.concatenate([values[detected], ghosts]),
        tuple(labels[k] for k in detected) + ghost_labels,
        scores=np.concatenate([scores[detected], ghost_scores]),
    )


def _noise(values: FloatArray, distance: FloatArray, rng: np.random.Generator) -> FloatArray:
    """Errors `(n, 9)` of boxes `(n, 9)`: along the line of sight larger than across it."""
    noise = rng.normal(size=values.shape) * DEVIATIONS * np.exp2(distance / 40.0)[:, None]
    bearing = np.arctan2(values[:, 1], values[:, 0])
    cos, sin = np.cos(bearing), np.sin(bearing)
    for first in (0, 7):
        along, across = noise[:, first].copy(), noise[:, first + 1].copy()
        noise[:, first], noise[:, first + 1] = cos * along - sin * across, sin * along + cos * across
    return noise


def _ghosts(rng: np.random.Generator) -> tuple[FloatArray, tuple[str, ...], FloatArray]:
    """Boxes `(n, 9)` of nothing, their labels and low scores `(n,)`."""
    count = int(rng.poisson(0.25))
    labels = tuple(str(label) for label in rng.choice(list(GHOSTS), count))
    size = np.array([GHOSTS[label] for label in labels]).reshape(-1, 3)
    place = np.stack([rng.uniform(5, 50, count), rng.uniform(-15, 15, count), size[:, 2] / 2], axis=1)
    yaw = wrap_angle(rng.uniform(-np.pi, np.pi, (count, 1)))
    return np.concatenate([place, size, yaw, np.zeros((count, 2))], axis=1), labels, rng.uniform(0.1, 0.4, count)
