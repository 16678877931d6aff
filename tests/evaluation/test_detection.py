"""Parity with the nuScenes devkit's own code, which is imported here alone (it takes seconds)."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nuscenes.eval.common.config import config_factory
from nuscenes.eval.common.data_classes import EvalBoxes
from nuscenes.eval.detection import algo
from nuscenes.eval.detection.constants import TP_METRICS
from nuscenes.eval.detection.data_classes import DetectionBox, DetectionMetrics
from nuscenes.eval.detection.utils import detection_name_to_rel_attributes
from pyquaternion import Quaternion

from framework.evaluation import detection
from framework.evaluation.detection_score import DetectionScore, Score, match_all, score
from framework.scene.types import DETECTION_CLASSES, Boxes, FloatArray, SceneError
from tests.evaluation.scenes import make_scene
from tests.fuzzing import fuzz

DEVKIT = config_factory("detection_cvpr_2019")
OURS = dict(zip(TP_METRICS, ("translation", "scale", "orientation", "velocity", "attribute"), strict=True))
Sample = tuple[Boxes, list[str]]


def random_truth(rng: np.random.Generator, classes: tuple[str, ...]) -> Sample:
    count = int(rng.integers(0, 25))
    values = np.empty((count, 9))
    values[:, :2], values[:, 2] = rng.uniform(-45, 45, (count, 2)), rng.normal(size=count)
    values[:, 3:6], values[:, 6] = rng.uniform(0.4, 6.0, (count, 3)), rng.uniform(-np.pi, np.pi, count)
    values[:, 7:9] = rng.normal(0, 3, (count, 2))
    values[rng.random(count) < 0.15, 7:9] = np.nan
    labels = tuple(str(name) for name in rng.choice(classes, count))
    return Boxes(values, labels, points=rng.integers(0, 6, count)), attributes_for(rng, labels)


def attributes_for(rng: np.random.Generator, labels: tuple[str, ...]) -> list[str]:
    return [str(rng.choice(["", *detection_name_to_rel_attributes(label)])) for label in labels]


def random_prediction(rng: np.random.Generator, truth: Boxes, ties: bool) -> Sample:
    """Most objects found, some twice, some with the wrong class, some that are not there."""
    rows = rng.integers(0, len(truth), int(1.2 * len(truth))) if len(truth) else np.zeros(0, dtype=np.int64)
    values = truth.values[rows] + rng.normal(0, [0.9, 0.9, 0.2, 0, 0, 0, 0.5, 0.8, 0.8], (len(rows), 9))
    values[:, 3:6] *= rng.uniform(0.7, 1.4, (len(rows), 3))
    labels = [truth.labels[row] if rng.random() < 0.9 else str(rng.choice(DETECTION_CLASSES)) for row in rows]
    ghosts, _ = random_truth(rng, DETECTION_CLASSES)
    values, labels = np.concatenate([values, ghosts.values[:5]]), labels + list(ghosts.labels[:5])
    scores = rng.integers(0, 5, len(labels)) / 4 if ties else rng.random(len(labels))
    return Boxes(values, tuple(labels), scores=scores), attributes_for(rng, tuple(labels))


def devkit_boxes(samples: list[Sample], truth: bool) -> EvalBoxes:
    """The devkit's containers, through its own range and point filters' conditions."""
    boxes = EvalBoxes()
    for index, (sample, attributes) in enumerate(samples):
        made = [
            DetectionBox(
                sample_token=str(index),
                translation=tuple(row[:3]),
                size=(row[4], row[3], row[5]),
                rotation=tuple(Quaternion(axis=[0, 0, 1], radians=row[6]).elements),
                velocity=tuple(row[7:9]),
                ego_translation=tuple(row[:3]),
                num_pts=int(sample.points[k]) if truth and sample.points is not None else -1,
                detection_name=sample.labels[k],
                detection_score=-1.0 if sample.scores is None else float(sample.scores[k]),
                attribute_name=attributes[k],
            )
            for k, row in enumerate(sample.values)
        ]
        kept = [b for b in made if b.ego_dist < DEVKIT.class_range[b.detection_name] and b.num_pts != 0]
        boxes.add_boxes(str(index), kept)
    return boxes


def devkit_score(truth: list[Sample], predicted: list[Sample]) -> DetectionMetrics:
    theirs, ours = devkit_boxes(truth, truth=True), devkit_boxes(predicted, truth=False)
    metrics = DetectionMetrics(DEVKIT)
    for name in DEVKIT.class_names:
        for distance in DEVKIT.dist_ths:
            data = algo.accumulate(theirs, ours, name, DEVKIT.dist_fcn_callable, distance)
            metrics.add_label_ap(name, distance, algo.calc_ap(data, DEVKIT.min_recall, DEVKIT.min_precision))
            if distance == DEVKIT.dist_th_tp:
                for error in TP_METRICS:
                    undefined = OURS[error] in detection.UNDEFINED.get(name, ())
                    value = np.nan if undefined else algo.calc_tp(data, DEVKIT.min_recall, error)
                    metrics.add_label_tp(name, error, value)
    return metrics


def our_score(truth: list[Sample], predicted: list[Sample]) -> Score:
    return score(match_all(table_of(predicted), table_of(truth)))


def table_of(samples: list[Sample]) -> detection.Detections:
    parts = [detection.scored_boxes(boxes, index, names) for index, (boxes, names) in enumerate(samples)]
    columns = [field.name for field in fields(detection.Detections)]
    return detection.Detections(*(np.concatenate([getattr(part, name) for part in parts]) for name in columns))


def assert_same(ours: Score, theirs: DetectionMetrics) -> None:
    for (name, distance), value in ours.precisions.items():
        assert value == pytest.approx(theirs.get_label_ap(name, distance), abs=1e-6), (name, distance)
    for (name, error), value in ours.errors.items():
        devkits = theirs.get_label_tp(name, {v: k for k, v in OURS.items()}[error])
        assert value == pytest.approx(devkits, abs=1e-6, nan_ok=True), (name, error)
    for devkits_name, error in OURS.items():
        assert ours.mean_error(error) == pytest.approx(theirs.tp_errors[devkits_name], abs=1e-6)
    assert ours.mean_precision == pytest.approx(theirs.mean_ap, abs=1e-6)
    assert ours.nds == pytest.approx(theirs.nd_score, abs=1e-6)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.fast_cases(3)
def test_parity_with_the_devkit(seed: int, ties: bool) -> None:
    rng = np.random.default_rng(seed)
    truth = [random_truth(rng, DETECTION_CLASSES) for _ in range(25)]
    predicted = [random_prediction(rng, boxes, ties) for boxes, _ in truth]
    theirs = devkit_score(truth, predicted)
    assert 0.15 < theirs.nd_score < 0.8
    assert_same(our_score(truth, predicted), theirs)


def test_parity_with_classes_that_are_empty() -> None:
    rng = np.random.default_rng(7)
    truth = [random_truth(rng, ("car", "barrier", "traffic_cone")) for _ in range(10)]
    predicted = [random_prediction(rng, boxes, ties=False) for boxes, _ in truth]
    ours = our_score(truth, predicted)
    assert_same(ours, devkit_score(truth, predicted))
    assert ours.present == ("car", "traffic_cone", "barrier")


def test_parity_without_attributes() -> None:
    rng = np.random.default_rng(8)
    truth = [(boxes, [""] * len(boxes)) for boxes, _ in (random_truth(rng, DETECTION_CLASSES) for _ in range(10))]
    predicted = [random_prediction(rng, boxes, ties=False) for boxes, _ in truth]
    ours = our_score(truth, predicted)
    assert_same(ours, devkit_score(truth, predicted))
    assert ours.mean_error("attribute") == 1.0


def test_parity_without_predictions_and_without_objects() -> None:
    rng = np.random.default_rng(9)
    nothing: list[Sample] = [(Boxes(np.zeros((0, 9)), (), scores=np.zeros(0)), [])]
    truth = [random_truth(rng, DETECTION_CLASSES)]
    for pair in ((truth, nothing), (nothing, [random_prediction(rng, truth[0][0], ties=False)]), (nothing, nothing)):
        ours = our_score(*pair)
        assert_same(ours, devkit_score(*pair))
        assert ours.nds == 0.0


def test_ranges_are_the_devkits() -> None:
    assert DEVKIT.class_range == detection.RANGES
    assert list(detection.DISTANCES) == DEVKIT.dist_ths
    assert DEVKIT.dist_th_tp == detection.ERROR_DISTANCE
    assert set(DETECTION_CLASSES) == set(DEVKIT.class_names)


def car(x: float, y: float = 0.0, **fields: object) -> FloatArray:
    row = np.array([x, y, 0.8, 4.5, 1.8, 1.6, 0.0, 5.0, 0.0])
    for name, value in fields.items():
        row[["x", "y", "z", "length", "width", "height", "yaw", "vx", "vy"].index(name)] = value
    return row


def test_metric_of_perfect_boxes_by_kind() -> None:
    metric = DetectionScore()
    boxes = Boxes(np.stack([car(10.0), car(30.0)]), ("car", "car"))
    metric.update(make_scene(id="a", boxes=boxes), boxes)
    metric.update(make_scene(id="b", kind="curve", boxes=boxes), None)
    results = metric.compute()
    assert results["ap/car"]["straight"] == pytest.approx(1.0)
    assert results["ap/car"]["curve"] == 0.0
    assert results["map"]["straight"] == pytest.approx(0.1)
    assert results["map_present"]["straight"] == pytest.approx(1.0)
    assert results["parse_failure"] == {"all": 0.5, "curve": 1.0, "straight": 0.0}
    assert results["attribute_error"]["straight"] == 1.0
    assert 0.0 < results["ap/car"]["all"] < 1.0


def test_metric_does_not_depend_on_the_order_of_scenes() -> None:
    rng = np.random.default_rng(3)
    samples = [random_truth(rng, DETECTION_CLASSES)[0] for _ in range(12)]
    pairs = [
        (make_scene(id=f"s{i}", boxes=boxes), random_prediction(rng, boxes, ties=True)[0])
        for i, boxes in enumerate(samples)
    ]
    forwards, backwards = DetectionScore(), DetectionScore()
    for pair in pairs:
        forwards.update(*pair)
    for pair in reversed(pairs):
        backwards.update(*pair)
    assert forwards.compute() == backwards.compute()


NUMBERS = st.one_of(st.floats(), st.sampled_from([0.0, 1e30, -1e300, 5.0]))


@pytest.mark.attack("answer", "a box of any numbers", "worth no more than none")
@fuzz(10)
@given(st.lists(NUMBERS, min_size=9, max_size=9), NUMBERS)
def test_no_predicted_box_raises_or_makes_a_mean_nan(values: list[float], score_: float) -> None:
    truth = Boxes(car(10.0)[None], ("car",))
    scene, metric = make_scene(boxes=truth), DetectionScore()
    metric.update(scene, Boxes(np.array([values]), ("car",), scores=np.array([score_])))
    metric.update(make_scene(id="sound", boxes=truth), truth)
    results = metric.compute()
    assert all(np.isfinite(value) for sliced in results.values() for value in sliced.values())
    assert results["nds"]["all"] <= 0.9


@pytest.mark.parametrize(
    ("wrong", "kind"),
    [
        ({"z": np.nan}, "not_finite"),
        ({"vx": np.inf}, "not_finite"),
        ({"height": 0.0}, "absurd"),
        ({"vy": 1e30}, "absurd"),
    ],
)
def test_boxes_that_cannot_be_count_as_none_and_by_kind(wrong: dict[str, object], kind: str) -> None:
    metric, truth = DetectionScore(), Boxes(car(10.0)[None], ("car",))
    metric.update(make_scene(boxes=truth), Boxes(np.stack([car(10.0), car(20.0, **wrong)]), ("car", "car")))
    results = metric.compute()
    assert results["ap/car"]["all"] == 0.0
    assert results["parse_failure"]["all"] == results[f"fault/{kind}"]["all"] == 1.0


def test_a_box_that_cannot_be() -> None:
    flat = Boxes(car(10.0, height=0.0)[None], ("car",))
    with pytest.raises(SceneError, match="hand-1, truth boxes"):
        DetectionScore().update(make_scene(boxes=flat), None)
    with pytest.raises(SceneError, match="hand-1: field `boxes`"):
        DetectionScore().update(make_scene(boxes=None), flat)


def test_rare_classes_and_boxes_out_of_range_are_left_out() -> None:
    boxes = Boxes(np.stack([car(10.0), car(51.0), car(5.0), car(49.0)]), ("animal", "car", "car", "car"))
    table = detection.scored_boxes(boxes, 0)
    np.testing.assert_array_equal(table.values[:, 0], [5.0, 49.0])


def test_errors_by_class_and_by_ring() -> None:
    metric = DetectionScore()
    truth = Boxes(np.stack([car(10.0), car(20.0), car(40.0)]), ("car", "car", "truck"))
    shifted = Boxes(np.stack([car(10.3), car(20.0), car(41.0)]), ("car", "car", "truck"))
    metric.update(make_scene(id="a", boxes=truth), shifted)
    results = {name: values["all"] for name, values in metric.compute().items()}
    # Two cars, the running mean of whose errors is sampled at the recalls up to 1: half of them have the first's alone.
    assert 0.0 <= results["translation_error/car"] <= 0.3
    assert results["translation_error/truck"] == pytest.approx(1.0)
    assert results["translation_error/0-15m"] == pytest.approx(0.3)
    assert results["translation_error/15-30m"] == pytest.approx(0.0)
    assert results["translation_error/30-50m"] == pytest.approx(1.0)
    assert results["map_present/0-15m"] == results["map_present/15-30m"] == pytest.approx(1.0)
    assert results["map_present/30-50m"] == pytest.approx(0.5)
    assert "velocity_error/barrier" not in results
