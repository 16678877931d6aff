"""The perception stack of the built-in world: boxes as a real one would report them, noisy, missing and sometimes wrong."""

from __future__ import annotations

import numpy as np

from framework.scene.frames import wrap_angle
from framework.scene.types import Boxes, FloatArray
from framework.scene.world.state import Snapshot

CONFUSED = {
    "truck": "bus",
    "bus": "truck",
    "trailer": "truck",
    "construction_vehicle": "truck",
    "motorcycle": "bicycle",
    "bicycle": "motorcycle",
    "animal": "pedestrian",
    "debris": "traffic_cone",
    "hose": "debris",
}
"""What a class is taken for when it is mistaken."""
DEVIATIONS = np.array([0.2, 0.1, 0.05, 0.2, 0.05, 0.05, 0.03, 0.3, 0.15])
"""Standard deviations of the nine values at 0 m; they double every 40 m."""


def perceive(snapshot: Snapshot, rng: np.random.Generator) -> Boxes:
    """Noisy boxes in the ego frame with scores; misses and confusions grow with distance and where few LiDAR points fall."""
    true = snapshot.boxes
    distance = np.hypot(true.values[:, 0], true.values[:, 1])
    seen = np.ones(len(true)) if true.points is None else np.minimum(true.points / 5.0, 1.0)
    certainty = np.clip(1.05 - distance / 150.0, 0.0, 1.0) * (0.4 + 0.6 * seen)
    noise = rng.normal(size=(len(true), 9)) * DEVIATIONS * np.exp2(distance / 40.0)[:, None]
    values = np.array(true.values) + noise
    values[:, 3:6] = np.maximum(values[:, 3:6], 0.1)
    values[:, 6] = wrap_angle(values[:, 6])
    mistaken = rng.random(len(true)) > 0.9 + 0.1 * certainty
    labels = [CONFUSED.get(label, label) if wrong else label for label, wrong in zip(true.labels, mistaken, strict=True)]
    scores = np.clip(certainty + rng.normal(0, 0.08, len(true)) - 0.2 * mistaken, 0.05, 0.99)
    kept = np.flatnonzero(rng.random(len(true)) < 0.75 + 0.25 * certainty)
    ghosts, ghost_labels, ghost_scores = _ghosts(rng)
    return Boxes(
        np.concatenate([values[kept], ghosts]),
        tuple(labels[i] for i in kept) + ghost_labels,
        scores=np.concatenate([scores[kept], ghost_scores]),
    )


def _ghosts(rng: np.random.Generator) -> tuple[FloatArray, tuple[str, ...], FloatArray]:
    count = int(rng.poisson(0.25))
    labels = tuple(str(label) for label in rng.choice(["car", "pedestrian", "traffic_cone"], count))
    sizes = {"car": (4.5, 1.9, 1.6), "pedestrian": (0.6, 0.6, 1.75), "traffic_cone": (0.4, 0.4, 0.7)}
    size = np.array([sizes[label] for label in labels]).reshape(-1, 3)
    place = np.stack([rng.uniform(5, 50, count), rng.uniform(-15, 15, count), size[:, 2] / 2], axis=1)
    yaw = wrap_angle(rng.uniform(-np.pi, np.pi, (count, 1)))
    return np.concatenate([place, size, yaw, np.zeros((count, 2))], axis=1), labels, rng.uniform(0.1, 0.4, count)
