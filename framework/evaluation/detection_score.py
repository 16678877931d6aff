"""The nuScenes detection score as a torchmetrics metric, over all scenes and slices of them."""

from __future__ import annotations

import logging
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
    RINGS,
    UNDEFINED,
    Detections,
    IntArray,
    OperatingCurve,
    average_precision,
    by_score,
    match,
    match_errors,
    operating_curve,
    scored_boxes,
    true_positive_error,
)
from framework.evaluation.results import Sliced
from framework.evaluation.slices import NAME_BYTES, RowStates, name_row, row_names, slices_of, text_key
from framework.scene.check import PLAN_FAULTS, box_fault
from framework.scene.types import ALL, DETECTION_CLASSES, Boxes, FloatArray, Scene, SceneError

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Matched:
    """The predictions of one class, matched at one distance."""

    predicted: Detections
    """The predictions, by descending score."""
    truth: Detections
    """The annotated boxes."""
    matches: IntArray
    """`(n,)`: the row of `truth` for each prediction, -1 without a match."""
    errors: dict[str, FloatArray]
    """{error: one value per match}."""

    def curve(self, scenes: IntArray | None = None) -> OperatingCurve:
        """The operating curve over all scenes, or over `scenes`. Matches never cross scenes, so one matching serves
        every slice.
        """
        ours = np.ones(len(self.matches), dtype=np.bool_) if scenes is None else np.isin(self.predicted.scenes, scenes)
        objects = len(self.truth.scenes) if scenes is None else int(np.isin(self.truth.scenes, scenes).sum())
        matched = self.matches >= 0
        errors = {name: values[ours[matched]] for name, values in self.errors.items()}
        return operating_curve(self.predicted.scores[ours], matched[ours], errors, objects)


def match_class(predicted: Detections, truth: Detections, index: int, distance: float) -> Matched:
    """Match the boxes of class `DETECTION_CLASSES[index]` at `distance` (m)."""
    ours, theirs = by_score(predicted.take(predicted.classes == index)), truth.take(truth.classes == index)
    matches = match(ours, theirs, distance)
    matched = matches >= 0
    period = PERIODS.get(DETECTION_CLASSES[index], 2 * np.pi)
    return Matched(ours, theirs, matches, match_errors(ours.take(matched), theirs.take(matches[matched]), period))


def match_all(predicted: Detections, truth: Detections) -> dict[tuple[str, float], Matched]:
    """{(class, distance): matches} for every class and distance."""
    return {
        (name, distance): match_class(predicted, truth, index, distance)
        for index, name in enumerate(DETECTION_CLASSES)
        for distance in DISTANCES
    }


@dataclass(frozen=True, slots=True)
class Score:
    """The parts of the nuScenes detection score."""

    precisions: dict[tuple[str, float], float]
    """{(class, distance): AP}."""
    errors: dict[tuple[str, str], float]
    """{(class, error): mean}, NaN where undefined."""
    present: tuple[str, ...]
    """The classes that occur in the truth."""

    def class_precision(self, name: str) -> float:
        """AP of a class, averaged over distances."""
        return float(np.mean([self.precisions[name, distance] for distance in DISTANCES]))

    @property
    def mean_precision(self) -> float:
        """mAP over all ten classes; a class without objects counts as 0."""
        return float(np.mean([self.class_precision(name) for name in DETECTION_CLASSES]))

    @property
    def mean_precision_present(self) -> float:
        """mAP over the classes that occur in the truth, for sets too small to have all ten; NaN without objects."""
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
    """The score of matched boxes, over all scenes or over `scenes`."""
    curves = {key: one.curve(scenes) for key, one in matched.items()}
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
    """The nuScenes detection score over all scenes and each scenario kind. `update(scene, predicted)`.

    An answer that does not parse (None) scores as no boxes and counts as `parse_failure`; so does one whose boxes
    cannot be (see `box_fault`), which counts as `fault/<kind>` too. Boxes without scores all get the score 1. Ties are
    broken by scene and row: the result does not depend on the split over ranks.
    """

    def __init__(self) -> None:
        rows: dict[str, tuple[tuple[int, ...], torch.dtype]] = {
            "kinds": ((NAME_BYTES,), torch.uint8),
            "failures": ((), torch.float64),
            "faults": ((len(PLAN_FAULTS),), torch.float64),
        }
        for side in ("predicted", "truth"):
            rows |= {f"{side}_scenes": ((), torch.int64), f"{side}_boxes": ((11,), torch.float64)}
            rows |= {f"{side}_counts": ((), torch.int64)}
        super().__init__(rows)

    def update(self, scene: Scene, predicted: Boxes | None) -> None:
        """Add one scene. Raises `SceneError` for a scene without annotation and for impossible annotated boxes."""
        if scene.boxes is None:
            raise SceneError(
                f"scene {scene.id}: field `boxes` is missing; detection cannot be judged without annotation"
            )
        key = text_key(scene.id)
        fault = None if predicted is None else box_fault(predicted)
        if fault:
            log.debug("scene %s: the predicted boxes count as an answer that does not parse: %s", scene.id, fault)
        detected = Boxes(np.zeros((0, 9)), ()) if predicted is None or fault else predicted
        try:
            truth = scored_boxes(scene.boxes, key)
        except SceneError as error:
            raise SceneError(f"scene {scene.id}, truth {error}") from error
        for side, rows in (("predicted", scored_boxes(detected, key)), ("truth", truth)):
            table = np.concatenate([rows.values, rows.classes[:, None], rows.scores[:, None]], axis=1)
            self.append(f"{side}_counts", torch.tensor([len(table)]))
            self.append(f"{side}_scenes", torch.from_numpy(rows.scenes))
            self.append(f"{side}_boxes", torch.from_numpy(table))
        self.count(scene.id)
        self.append("kinds", name_row(scene.kind))
        self.append("failures", torch.tensor([float(predicted is None or fault is not None)]))
        self.append("faults", torch.tensor([[float(kind == fault) for kind in PLAN_FAULTS]]))

    def compute(self) -> Sliced:
        """{metric: {slice: value}}: `nds`, `map`, `map_present`, the five mean errors, AP and errors by class, AP by
        class and distance of the match; over all scenes also mAP and errors by `RINGS`, of boxes in the ring alone.
        """
        first = self.first()
        scenes, kinds = self.table("samples").numpy()[first], row_names(self.table("kinds"))[first]
        predicted, truth = self._detections("predicted", first), self._detections("truth", first)
        matched = match_all(predicted, truth)
        failures, faults = self.table("failures").numpy()[first], self.table("faults").numpy()[first]
        results = dict(self.repeated())
        for name, mask in slices_of(kinds).items():
            part = score(matched, None if name == ALL else scenes[mask])
            for metric, value in _metrics(part).items():
                results.setdefault(metric, {})[name] = value
            results.setdefault("parse_failure", {})[name] = float(failures[mask].mean()) if mask.any() else float("nan")
            for index in np.flatnonzero(faults.any(axis=0)):
                results.setdefault(f"fault/{PLAN_FAULTS[index]}", {})[name] = float(faults[mask, index].mean())
            results.setdefault("scenes", {})[name] = float(mask.sum())
        for ring in RINGS:
            within = _means(score(match_all(predicted.ring(*ring), truth.ring(*ring))))
            results |= {f"{metric}/{ring[0]:g}-{ring[1]:g}m": {ALL: value} for metric, value in within.items()}
        return results

    def _detections(self, side: str, first: npt.NDArray[np.bool_]) -> Detections:
        """The boxes of one side, of samples that are judged for the `first` time."""
        rows = np.repeat(first, self.table(f"{side}_counts").numpy())
        scenes, table = self.table(f"{side}_scenes").numpy()[rows], self.table(f"{side}_boxes").numpy()[rows]
        order: npt.NDArray[np.intp] = np.argsort(scenes, kind="stable")
        scenes, table = scenes[order], table[order]
        none = np.full(len(scenes), "", dtype=np.str_)
        return Detections(scenes, table[:, 9].astype(np.int64), table[:, :9], table[:, 10], none)


def _means(part: Score) -> dict[str, float]:
    """mAP and the errors of the classes that occur in the truth; without what is undefined for all of them."""
    means = {"map_present": part.mean_precision_present} if part.present else {}
    for error in ERRORS:
        values = [part.errors[name, error] for name in part.present if not np.isnan(part.errors[name, error])]
        if values:
            means[f"{error}_error"] = float(np.mean(values))
    return means


def _metrics(part: Score) -> dict[str, float]:
    metrics = {"nds": part.nds, "map": part.mean_precision, "map_present": part.mean_precision_present}
    metrics |= {f"{error}_error": part.mean_error(error) for error in ERRORS}
    for name in part.present:
        values = {f"{error}_error/{name}": part.errors[name, error] for error in ERRORS}
        metrics |= {metric: value for metric, value in values.items() if not np.isnan(value)}
        metrics[f"ap/{name}"] = part.class_precision(name)
        metrics |= {f"ap/{name}/{distance:g}m": part.precisions[name, distance] for distance in DISTANCES}
    return metrics
