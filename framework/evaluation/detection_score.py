"""From matched boxes to the nuScenes detection score, over all scenes and over slices of them; the torchmetrics
Metric.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from framework.evaluation.detection import (
    AP_WEIGHT,
    DISTANCES,
    ERROR_DISTANCE,
    ERRORS,
    PERIODS,
    UNDEFINED,
    Curve,
    Detections,
    IntArray,
    average_precision,
    by_score,
    match,
    match_errors,
    operating_curve,
    scored_boxes,
    true_positive_error,
)
from framework.evaluation.slices import ALL, NAME_BYTES, RowStates, Sliced, name_row, row_names, slices_of, text_key
from framework.scene.types import DETECTION_CLASSES, Boxes, FloatArray, Scene, SceneError


@dataclass(frozen=True, slots=True)
class Matched:
    """The predictions of one class, by descending score, with the truth that each took at one distance (-1: none)."""

    predicted: Detections
    truth: Detections
    matches: IntArray
    errors: dict[str, FloatArray]

    def curve(self, scenes: IntArray | None = None) -> Curve:
        """The operating curve over all scenes or only some. Matches never cross scenes, hence one matching serves
        every slice.
        """
        ours = np.ones(len(self.matches), dtype=np.bool_) if scenes is None else np.isin(self.predicted.scenes, scenes)
        objects = len(self.truth.scenes) if scenes is None else int(np.isin(self.truth.scenes, scenes).sum())
        found = self.matches >= 0
        errors = {name: values[ours[found]] for name, values in self.errors.items()}
        return operating_curve(self.predicted.scores[ours], found[ours], errors, objects)


def match_class(predicted: Detections, truth: Detections, index: int, distance: float) -> Matched:
    """Match the class `DETECTION_CLASSES[index]` at `distance` metres."""
    ours, theirs = by_score(predicted.take(predicted.classes == index)), truth.take(truth.classes == index)
    matches = match(ours, theirs, distance)
    found = matches >= 0
    period = PERIODS.get(DETECTION_CLASSES[index], 2 * np.pi)
    return Matched(ours, theirs, matches, match_errors(ours.take(found), theirs.take(matches[found]), period))


def match_all(predicted: Detections, truth: Detections) -> dict[tuple[str, float], Matched]:
    """Every class at every distance."""
    return {
        (name, distance): match_class(predicted, truth, index, distance)
        for index, name in enumerate(DETECTION_CLASSES)
        for distance in DISTANCES
    }


@dataclass(frozen=True, slots=True)
class Score:
    """The score's parts: AP by (class, distance), errors by (class, error), NaN where undefined; `present`: classes
    among the truth.
    """

    precisions: dict[tuple[str, float], float]
    errors: dict[tuple[str, str], float]
    present: tuple[str, ...]

    def class_precision(self, name: str) -> float:
        """AP of a class, averaged over distances."""
        return float(np.mean([self.precisions[name, distance] for distance in DISTANCES]))

    @property
    def mean_precision(self) -> float:
        """mAP over all ten classes; one without objects counts as 0."""
        return float(np.mean([self.class_precision(name) for name in DETECTION_CLASSES]))

    @property
    def mean_precision_present(self) -> float:
        """mAP over the classes that the truth holds, for sets too small to show all ten; NaN without any object."""
        return float(np.mean([self.class_precision(name) for name in self.present])) if self.present else float("nan")

    def mean_error(self, error: str) -> float:
        """A true-positive error over the classes for which it is defined."""
        return float(np.nanmean([self.errors[name, error] for name in DETECTION_CLASSES]))

    @property
    def nds(self) -> float:
        """The nuScenes detection score: (5 mAP + the sum of 1 - min(1, error)) / 10."""
        gained = sum(max(0.0, 1.0 - self.mean_error(error)) for error in ERRORS)
        return (AP_WEIGHT * self.mean_precision + gained) / (AP_WEIGHT + len(ERRORS))


def score(matched: Mapping[tuple[str, float], Matched], scenes: IntArray | None = None) -> Score:
    """The score of matched boxes, over all scenes or only `scenes`."""
    curves = {key: found.curve(scenes) for key, found in matched.items()}
    errors = {
        (name, error): float("nan")
        if error in UNDEFINED.get(name, ())
        else true_positive_error(curves[name, ERROR_DISTANCE], error)
        for name in DETECTION_CLASSES
        for error in ERRORS
    }
    present = tuple(name for name in DETECTION_CLASSES if _has_truth(matched[name, ERROR_DISTANCE], scenes))
    return Score({key: average_precision(curve) for key, curve in curves.items()}, errors, present)


def _has_truth(matched: Matched, scenes: IntArray | None) -> bool:
    rows = matched.truth.scenes
    return bool(len(rows)) if scenes is None else bool(np.isin(rows, scenes).any())


class DetectionScore(RowStates):
    """The nuScenes detection score over scenes, and over each scenario kind. `update(scene, predicted)`.

    An answer that did not parse (None) is scored as no boxes and counts in `parse_failure`. Boxes without scores (as a
    language model writes them) all get the score 1. Ties are broken by scene and row, so that the result does not
    depend on the split over ranks.
    """

    def __init__(self) -> None:
        rows: dict[str, tuple[tuple[int, ...], torch.dtype]] = {
            "kinds": ((NAME_BYTES,), torch.uint8),
            "failures": ((), torch.float64),
        }
        for side in ("predicted", "truth"):
            rows |= {f"{side}_scenes": ((), torch.int64), f"{side}_boxes": ((11,), torch.float64)}
        super().__init__(rows)

    def update(self, scene: Scene, predicted: Boxes | None) -> None:
        """Add one scene. Raises `SceneError` when it is not annotated or a box cannot be."""
        if scene.boxes is None:
            raise SceneError(
                f"scene {scene.id}: field `boxes` is missing; detection cannot be judged without annotation"
            )
        key = text_key(scene.id)
        found = Boxes(np.zeros((0, 9)), ()) if predicted is None else predicted
        for side, boxes in (("predicted", found), ("truth", scene.boxes)):
            try:
                rows = scored_boxes(boxes, key)
            except SceneError as error:
                raise SceneError(f"scene {scene.id}, {side} {error}") from error
            table = np.concatenate([rows.values, rows.classes[:, None], rows.scores[:, None]], axis=1)
            self.append(f"{side}_scenes", torch.from_numpy(rows.scenes))
            self.append(f"{side}_boxes", torch.from_numpy(table))
        self.count(scene.id)
        self.append("kinds", name_row(scene.kind))
        self.append("failures", torch.tensor([float(predicted is None)]))

    def compute(self) -> Sliced:
        """{metric: {slice: value}}: `nds`, `map`, `map_present`, the five mean errors, AP by class, and by class and
        distance for all scenes.
        """
        self.require_once()
        scenes, kinds = self.table("samples").numpy(), row_names(self.table("kinds"))
        matched = match_all(self._detections("predicted"), self._detections("truth"))
        failures, results = self.table("failures").numpy(), dict[str, dict[str, float]]()
        for name, mask in slices_of(kinds).items():
            part = score(matched, None if name == ALL else scenes[mask])
            for metric, value in _metrics(part).items():
                results.setdefault(metric, {})[name] = value
            results.setdefault("parse_failure", {})[name] = float(failures[mask].mean()) if mask.any() else float("nan")
            results.setdefault("scenes", {})[name] = float(mask.sum())
        return results

    def _detections(self, side: str) -> Detections:
        scenes, table = self.table(f"{side}_scenes").numpy(), self.table(f"{side}_boxes").numpy()
        order: npt.NDArray[np.intp] = np.argsort(scenes, kind="stable")
        scenes, table = scenes[order], table[order]
        none = np.full(len(scenes), "", dtype=np.str_)
        return Detections(scenes, table[:, 9].astype(np.int64), table[:, :9], table[:, 10], none)


def _metrics(part: Score) -> dict[str, float]:
    metrics = {"nds": part.nds, "map": part.mean_precision, "map_present": part.mean_precision_present}
    metrics |= {f"{error}_error": part.mean_error(error) for error in ERRORS}
    for name in part.present:
        metrics[f"ap/{name}"] = part.class_precision(name)
        metrics |= {f"ap/{name}/{distance:g}m": part.precisions[name, distance] for distance in DISTANCES}
    return metrics
