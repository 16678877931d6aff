"""The nuScenes detection score as the challenge computes it (Caesar et al. 2020, "nuScenes: A Multimodal Dataset for
Autonomous Driving", section 3.1), tested against the devkit.

Boxes are in the ego frame: a distance from the ego is a distance from the origin. Boxes of other classes are left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from framework.scene.frames import wrap_angle
from framework.scene.types import DETECTION_CLASSES, Boxes, FloatArray, SceneError

DISTANCES = (0.5, 1.0, 2.0, 4.0)
"""Thresholds of the centre distance on the ground (m) for a match; AP is averaged over them."""
ERROR_DISTANCE = 2.0
"""The threshold (m) whose matches give the true-positive errors."""
RANGES = {
    **dict.fromkeys(("car", "truck", "bus", "trailer", "construction_vehicle"), 50.0),
    **dict.fromkeys(("pedestrian", "motorcycle", "bicycle"), 40.0),
    **dict.fromkeys(("traffic_cone", "barrier"), 30.0),
}
"""The largest distance from the ego (m) at which boxes of each class count."""
RINGS = ((0.0, 15.0), (15.0, 30.0), (30.0, 50.0))
"""Distances from the ego (m), from and up to, by which detection is also reported."""
MIN_PRECISION = MIN_RECALL = 0.1
"""Precision and recall below these do not count."""
RECALLS = np.linspace(0.0, 1.0, 101)
"""The recalls at which curves are sampled."""
ERRORS = ("translation", "scale", "orientation", "velocity", "attribute")
"""The true-positive errors, in m, 1 - IoU of aligned boxes, rad, m/s and 1 - accuracy."""
UNDEFINED = {"traffic_cone": ("orientation", "velocity", "attribute"), "barrier": ("velocity", "attribute")}
"""{class: the errors that are undefined for it}."""
PERIODS = {"barrier": np.pi}
"""{class: the period (rad) of its heading}, 2 pi for others: a barrier looks the same from both sides."""
AP_WEIGHT = 5.0
"""The weight of mAP in NDS; each error weighs 1."""

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Detections:
    """Boxes of many scenes in one table."""

    scenes: IntArray
    """`(n,)`: the key of each box's scene."""
    classes: IntArray
    """`(n,)`: indices in `DETECTION_CLASSES`."""
    values: FloatArray
    """`(n, 9)`: see `Boxes.values`."""
    scores: FloatArray
    """`(n,)`: confidences."""
    attributes: npt.NDArray[np.str_]
    """`(n,)`: nuScenes attribute names, empty where unknown, as in all scenes of this project; see `match_errors`."""

    def take(self, rows: npt.NDArray[np.bool_] | npt.NDArray[np.intp]) -> Detections:
        """The selected rows, by mask or index."""
        return Detections(
            self.scenes[rows], self.classes[rows], self.values[rows], self.scores[rows], self.attributes[rows]
        )

    def ring(self, nearest: float, farthest: float) -> Detections:
        """The boxes from `nearest` up to `farthest` m from the ego, on the ground."""
        distance = np.hypot(self.values[:, 0], self.values[:, 1])
        return self.take((distance >= nearest) & (distance < farthest))


@dataclass(frozen=True, slots=True)
class OperatingCurve:
    """The operating curve of a detector, sampled at `RECALLS`."""

    precision: FloatArray
    """`(101,)`."""
    confidence: FloatArray
    """`(101,)`: 0 beyond the highest recall reached."""
    errors: Mapping[str, FloatArray]
    """{error: its cumulative mean `(101,)`}."""


NO_MATCHES = OperatingCurve(np.zeros(101), np.zeros(101), {name: np.ones(101) for name in ERRORS})


def scored_boxes(boxes: Boxes, scene: int, attributes: Sequence[str] | None = None) -> Detections:
    """The boxes of one scene that count: of a known class, within its range and, where point counts are known, with
    points inside.

    Boxes without scores get 1. Raises `SceneError` for poses that are not finite and sizes that are not positive.
    """
    values = np.asarray(boxes.values, dtype=np.float64).reshape(-1, 9)
    if not np.isfinite(values[:, :7]).all() or (values[:, 3:6] <= 0).any():
        raise SceneError("boxes: a pose is not finite or a size not positive; the box codec must refuse such answers")
    index = {name: position for position, name in enumerate(DETECTION_CLASSES)}
    classes = np.array([index.get(label, -1) for label in boxes.labels], dtype=np.int64)
    ranges = np.array([RANGES.get(label, 0.0) for label in boxes.labels])
    scores = np.ones(len(boxes)) if boxes.scores is None else np.asarray(boxes.scores, dtype=np.float64)
    names = np.array([""] * len(boxes) if attributes is None else list(attributes), dtype=np.str_)
    counts = (classes >= 0) & (np.hypot(values[:, 0], values[:, 1]) < ranges)
    if boxes.points is not None:
        counts &= np.asarray(boxes.points) != 0
    return Detections(np.full(len(boxes), scene, dtype=np.int64), classes, values, scores, names).take(counts)


def match(predicted: Detections, truth: Detections, distance: float) -> IntArray:
    """Match predictions of one class greedily: the row of `truth` for each `(n,)`, -1 without a match.

    In order, a prediction takes the nearest object of its scene that is still free, if nearer than `distance` (m) on
    the ground. `predicted` must be sorted by descending score.
    """
    rows_of: dict[int, IntArray] = {
        int(scene): np.flatnonzero(truth.scenes == scene) for scene in np.unique(truth.scenes)
    }
    free = np.ones(len(truth.scenes), dtype=np.bool_)
    matches = np.full(len(predicted.scenes), -1, dtype=np.int64)
    for index, (scene, centre) in enumerate(zip(predicted.scenes.tolist(), predicted.values[:, :2], strict=True)):
        rows = rows_of.get(scene)
        rows = None if rows is None else rows[free[rows]]
        if rows is None or not len(rows):
            continue
        distances = np.linalg.norm(truth.values[rows, :2] - centre, axis=1)
        nearest = int(np.argmin(distances))
        if distances[nearest] < distance:
            matches[index] = rows[nearest]
            free[rows[nearest]] = False
    return matches


def by_score(detections: Detections) -> Detections:
    """Sort by descending score; ties put the later row first, as the devkit does."""
    return detections.take(np.argsort(detections.scores, kind="stable")[::-1])


def match_errors(predicted: Detections, truth: Detections, period: float) -> dict[str, FloatArray]:
    """The five errors of matched pairs, `(n,)` each. Headings are compared modulo `period` (rad).

    The attribute error is NaN where the truth has no attribute, the velocity error where a velocity is unknown. Means
    leave such pairs out; a class without any known value gets the error 1. On scenes without attributes the attribute
    error is therefore 1 and NDS at most 0.9.
    """
    ours, theirs = predicted.values, truth.values
    common = np.minimum(ours[:, 3:6], theirs[:, 3:6]).prod(axis=1)
    union = ours[:, 3:6].prod(axis=1) + theirs[:, 3:6].prod(axis=1) - common
    turn = wrap_angle((theirs[:, 6] - ours[:, 6]) * (2 * np.pi / period)) * (period / (2 * np.pi))
    wrong = (predicted.attributes != truth.attributes).astype(np.float64)
    return {
        "translation": np.linalg.norm(ours[:, :2] - theirs[:, :2], axis=1),
        "scale": 1.0 - common / union,
        "orientation": np.abs(turn),
        "velocity": np.linalg.norm(ours[:, 7:9] - theirs[:, 7:9], axis=1),
        "attribute": np.where(truth.attributes == "", np.nan, wrong),
    }


def operating_curve(
    scores: FloatArray, matched: npt.NDArray[np.bool_], errors: Mapping[str, FloatArray], objects: int
) -> OperatingCurve:
    """Precision and errors by recall.

    Args:
        scores: `(n,)`, of the predictions, descending.
        matched: `(n,)`, whether each prediction has a match.
        errors: {error: one value per *match*}.
        objects: the number of objects in the truth.
    """
    if not objects or not matched.any():
        return NO_MATCHES
    hits = np.cumsum(matched).astype(np.float64)
    recall, precision = hits / objects, hits / np.arange(1, len(matched) + 1)
    confidence = np.interp(RECALLS, recall, scores, right=0.0)
    resampled = {
        name: np.interp(confidence[::-1], scores[matched][::-1], running_mean(values)[::-1])[::-1]
        for name, values in errors.items()
    }
    return OperatingCurve(np.interp(RECALLS, recall, precision, right=0.0), confidence, resampled)


def running_mean(values: FloatArray) -> FloatArray:
    """The mean of the known values up to each position: 0 before the first known one, 1 throughout without any."""
    known = ~np.isnan(values)
    if not known.any():
        return np.ones(len(values))
    counts = np.cumsum(known)
    return np.divide(np.nancumsum(values), counts, out=np.zeros(len(values)), where=counts > 0)


def average_precision(curve: OperatingCurve) -> float:
    """The area under the curve above `MIN_PRECISION` and beyond `MIN_RECALL`, scaled to 1."""
    beyond = curve.precision[round(100 * MIN_RECALL) + 1 :]
    return float(np.maximum(beyond - MIN_PRECISION, 0.0).mean()) / (1.0 - MIN_PRECISION)


def true_positive_error(curve: OperatingCurve, name: str) -> float:
    """The mean of an error over the recalls reached beyond `MIN_RECALL`; 1 when none is."""
    reached = np.flatnonzero(curve.confidence)
    first, last = round(100 * MIN_RECALL) + 1, int(reached[-1]) if len(reached) else 0
    return float(curve.errors[name][first : last + 1].mean()) if last >= first else 1.0
