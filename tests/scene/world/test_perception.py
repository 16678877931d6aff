"""The perception stack: mostly right, worse far away and where little is seen, and its scores know it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from framework.scene.types import CLASSES, Boxes
from framework.scene.world.perception import CONFUSED, GHOSTS, perceive
from framework.scene.world.state import Road, Snapshot

NO_ROAD = Road((), (), np.zeros((0, 2)), 10.0)
SWEEPS = 400


def snapshot_at(distances: list[float], points: int = 50) -> Snapshot:
    """One car straight ahead at each distance, with `points` LiDAR points on it."""
    values = np.array([[x, 0.0, 0.8, 4.5, 1.9, 1.6, 3.1, 5.0, 0.0] for x in distances])
    boxes = Boxes(values, ("car",) * len(distances), points=np.full(len(distances), points))
    return Snapshot("straight", 0, NO_ROAD, boxes, 5.0, 0.0)


def sweeps(snapshot: Snapshot) -> list[Boxes]:
    return [perceive(snapshot, np.random.default_rng(seed)) for seed in range(SWEEPS)]


def near_to(boxes: Boxes, x: float) -> np.ndarray:
    """Which boxes are vehicles within 4 m of (x, 0)."""
    vehicle = np.isin(boxes.labels, ("car", "truck"))
    return vehicle & (np.hypot(boxes.values[:, 0] - x, boxes.values[:, 1]) < 4.0)


def recall(snapshot: Snapshot, x: float) -> float:
    return float(np.mean([near_to(boxes, x).any() for boxes in sweeps(snapshot)]))


def test_most_is_found_but_less_of_what_is_far_or_hidden() -> None:
    near, far = recall(snapshot_at([10.0]), 10.0), recall(snapshot_at([48.0]), 48.0)
    hidden = recall(snapshot_at([10.0], points=0), 10.0)
    assert near > 0.97
    assert far < near - 0.02
    assert hidden < near - 0.05
    assert hidden > 0.5


def test_noise_grows_with_distance_and_is_larger_along_the_line_of_sight() -> None:
    snapshot = snapshot_at([8.0, 48.0])
    errors = {x: [] for x in (8.0, 48.0)}
    for boxes in sweeps(snapshot):
        for x, found in errors.items():
            found.extend(boxes.values[near_to(boxes, x), :2] - [x, 0.0])
    (near_x, near_y), (far_x, far_y) = (np.std(found, axis=0) for found in errors.values())
    assert near_x == pytest.approx(0.2 * 2 ** (8 / 40), rel=0.15)
    assert far_x == pytest.approx(0.2 * 2 ** (48 / 40), rel=0.15)
    assert near_y < 0.7 * near_x
    assert far_y < 0.7 * far_x


def test_scores_are_higher_for_what_is_right() -> None:
    snapshot = snapshot_at([30.0], points=3)
    right, wrong, errors = [], [], []
    for boxes in sweeps(snapshot):
        assert boxes.scores is not None
        assert ((boxes.scores > 0) & (boxes.scores < 1)).all()
        error = np.hypot(boxes.values[:, 0] - 30.0, boxes.values[:, 1])
        correct = (error < 1.5) & (np.array(boxes.labels) == "car")
        right.extend(boxes.scores[correct])
        errors.extend(error[correct])
        wrong.extend(boxes.scores[~correct])
    assert len(wrong) > 50
    assert np.mean(right) > np.mean(wrong) + 0.15
    assert np.corrcoef(errors, right)[0, 1] < -0.2


def test_confusions_are_with_similar_classes_and_grow_where_little_is_seen() -> None:
    assert set(CONFUSED) == set(CLASSES)
    shares = []
    for points in (50, 0):
        labels = [
            boxes.labels[k]
            for boxes in sweeps(snapshot_at([40.0], points))
            for k in np.flatnonzero(near_to(boxes, 40.0))
        ]
        shares.append(float(np.mean(np.array(labels) == CONFUSED["car"])))
    assert 0.0 < shares[0] < shares[1] < 0.2


def test_ghosts_appear_where_nothing_is() -> None:
    nothing = replace(snapshot_at([10.0]), boxes=Boxes(np.zeros((0, 9)), ()))
    found = sweeps(nothing)
    assert 0.15 < np.mean([len(boxes) for boxes in found]) < 0.35
    assert {label for boxes in found for label in boxes.labels} == set(GHOSTS)


def test_values_are_well_formed_and_seeded() -> None:
    snapshot = snapshot_at([10.0, 20.0])
    for boxes in sweeps(snapshot):
        assert np.isfinite(boxes.values).all()
        assert (boxes.values[:, 3:6] > 0).all()
        assert (np.abs(boxes.values[:, 6]) <= np.pi).all()
    first, again = sweeps(snapshot)[3], sweeps(snapshot)[3]
    np.testing.assert_array_equal(first.values, again.values)
    assert first.labels == again.labels
