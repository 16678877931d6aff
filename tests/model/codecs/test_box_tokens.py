from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from framework.evaluation.detection_score import DetectionScore
from framework.model.codecs.box_tokens import BoxTokenCodec, match_nearest
from framework.model.codecs.boxes import COLUMNS
from framework.scene.codec import BoxCodec
from framework.scene.types import CLASSES, Boxes, SceneError
from framework.scene.world.generate import generate_scene
from framework.scene.world.scenarios import KINDS
from tests.evaluation.scenes import make_scene
from tests.fuzzing import fuzz
from tests.model.codecs.reading import accepts

POINTING = BoxTokenCodec(references=4, max_new=3, bins=101)
COPYING = BoxTokenCodec(references=4, max_new=0, corrected=[])
ALONE = BoxTokenCodec(references=0, max_new=8)
ground, height, size, speed = st.floats(-59, 59), st.floats(-7, 7), st.floats(0.2, 24), st.floats(-39, 39)
box = st.tuples(ground, ground, height, size, size, size, st.floats(-math.pi, math.pi), speed, speed)
many = st.lists(st.tuples(st.sampled_from(CLASSES), box), max_size=6)


def boxes_of(rows: list[tuple[str, tuple[float, ...]]]) -> Boxes:
    return Boxes(np.array([row for _, row in rows]).reshape(-1, 9), tuple(label for label, _ in rows))


def row(x: float, y: float = 0.0, label: str = "car") -> tuple[str, tuple[float, ...]]:
    return label, (x, y, 0.8, 4.6, 1.9, 1.6, 0.5, 5.0, 0.0)


@fuzz(40)
@given(rows=many)
def test_a_new_box_comes_back_within_half_a_bin(rows: list[tuple[str, tuple[float, ...]]]) -> None:
    boxes = boxes_of(rows)
    decoded = ALONE.decode(ALONE.encode(boxes))
    near = boxes.nearest(8)
    assert decoded.labels == near.labels
    half = [scale.step(ALONE.bins) / 2 + 1e-9 for scale in ALONE.scales]
    off = np.abs(decoded.values - near.values)
    off[:, 3:6] = np.abs(np.log(decoded.values[:, 3:6] / near.values[:, 3:6]))
    off[:, 6] = np.abs(np.angle(np.exp(1j * (decoded.values[:, 6] - near.values[:, 6]))))
    assert (off <= half).all()
    assert ALONE.encode(decoded) == ALONE.encode(boxes_of(list(zip(decoded.labels, decoded.values, strict=True))))


@fuzz(40)
@given(one=st.tuples(st.sampled_from(CLASSES), box), seed=st.integers(0, 99))
def test_a_corrected_input_comes_back_within_half_a_bin(one: tuple[str, tuple[float, ...]], seed: int) -> None:
    boxes, rng = boxes_of([one]), np.random.default_rng(seed)
    values = boxes.values + rng.uniform(-1, 1, (1, 9)) * [1, 1, 1, 0, 0, 0, 3, 5, 5]
    values[:, 3:6] *= rng.uniform(0.6, 1.6, (1, 3))
    inputs = Boxes(values, ("truck",))
    text = POINTING.encode(boxes, inputs)
    (found,), (wanted,) = POINTING.decode(text, inputs).values, boxes.values
    off = np.abs(found - wanted)
    off[3:6] = np.abs(np.log(found[3:6] / wanted[3:6]))
    off[6] = np.abs(np.angle(np.exp(1j * (found[6] - wanted[6]))))
    assert (off <= [scale.step(POINTING.bins) / 2 + 1e-9 for scale in POINTING.corrections]).all()
    assert accepts(POINTING, text)


def test_an_input_that_is_thinner_than_any_object_is_corrected_all_the_same() -> None:
    given_boxes, true = boxes_of([row(10.0)]), boxes_of([row(10.0)])
    given_boxes.values[0, 4], true.values[0, 4] = 0.01, 0.15
    found = POINTING.decode(POINTING.encode(true, given_boxes), given_boxes)
    assert found.values[0, 4] == pytest.approx(0.15, rel=POINTING.corrections[4].step(POINTING.bins))


def test_the_form_is_as_documented() -> None:
    inputs = boxes_of([row(30.0, label="truck"), row(10.2), row(20.0, 5.0)])
    text = COPYING.encode(boxes_of([row(10.0, label="bus"), row(30.0), row(-25.0)]), inputs)
    assert text == "<|ref_0|><|class_bus|><|ref_1|><|no_object|><|ref_2|><|class_car|>"
    decoded = COPYING.decode(text, inputs)
    assert decoded.labels == ("bus", "car")
    assert decoded.values[:, 0].tolist() == [10.2, 30.0]
    zero = "<|bin_50|>"
    one = POINTING.encode(boxes_of([row(10.0)]), boxes_of([row(10.0)]))
    assert one == "<|ref_0|><|class_car|>" + zero * 9
    assert POINTING.encode(boxes_of([]), None) == ""
    assert len(POINTING.decode("", None)) == 0


def test_scores_are_the_probabilities_of_the_classes() -> None:
    inputs = boxes_of([row(10.0), row(20.0), row(30.0)])
    text = "<|ref_0|><|class_car|><|ref_1|><|no_object|><|ref_2|><|class_bus|>"
    decoded = COPYING.decode(text, inputs, np.log([1.0, 0.9, 1.0, 0.6, 1.0, 0.7, 0.5]).tolist())
    np.testing.assert_allclose(decoded.scores, [0.9, 0.7])
    assert COPYING.decode(text, inputs).scores.tolist() == [1.0, 0.5]
    codec = BoxTokenCodec(references=1, max_new=1, corrected=["x"])
    text = codec.encode(boxes_of([row(10.0), row(40.0)]), inputs)
    chances = [1.0, 0.8, 0.1, 0.5, 0.6, *[0.1] * 9]
    np.testing.assert_allclose(codec.decode(text, inputs, np.log(chances).tolist()).scores, [0.8, 0.3])


@pytest.mark.parametrize("kind", KINDS[:4])
def test_perfect_answers_to_the_world_have_an_average_precision_of_one(kind: str) -> None:
    """What is taught is what is scored."""
    metric = DetectionScore()
    codec = BoxTokenCodec(references=8, max_new=16)
    for seed in range(2):
        scene = generate_scene(seed, kind)
        assert scene.perception is not None
        text = codec.encode(scene.boxes.visible(), scene.perception)
        assert accepts(codec, text)
        metric.update(scene, codec.decode(text, scene.perception))
    assert metric.compute()["map_present"]["all"] == pytest.approx(1.0)


def test_what_no_sensor_sees_is_neither_taught_nor_scored() -> None:
    boxes = boxes_of([row(10.0), row(20.0)])
    hidden = Boxes(boxes.values, boxes.labels, points=np.array([3, 0]))
    metric = DetectionScore()
    metric.update(make_scene(boxes=hidden), ALONE.decode(ALONE.encode(hidden.visible())))
    assert metric.compute()["ap/car"]["all"] == pytest.approx(1.0)


@pytest.mark.parametrize(
    "text",
    [
        "<|ref_1|><|class_car|><|ref_0|><|class_car|>",
        "<|ref_0|><|class_tram|>",
        "<|ref_00|><|class_car|>",
        "<|ref_0|>",
        "<|ref_0|><|class_car|> ",
        "<|new_box|><|class_car|>",
    ],
)
def test_broken_answers_are_refused(text: str) -> None:
    inputs = boxes_of([row(10.0), row(20.0)])
    assert COPYING.decode(text, inputs) is None
    assert text == "<|ref_00|><|class_car|>" or not accepts(COPYING, text)


def test_a_reference_to_a_box_that_is_not_shown_is_refused() -> None:
    text = "<|ref_0|><|class_car|><|ref_1|><|class_car|>"
    assert accepts(COPYING, text)
    assert COPYING.decode(text, boxes_of([row(10.0)])) is None


def test_the_pairs_of_inputs_and_objects_are_the_nearest() -> None:
    inputs, objects = (np.array([row(x)[1] for x in places]) for places in ([10.0, 11.0, 50.0], [11.2, 9.0]))
    assert match_nearest(inputs, objects, 4.0) == [1, 0, None]
    assert match_nearest(inputs, objects[:0], 4.0) == [None] * 3


def test_what_cannot_be_is_named() -> None:
    assert isinstance(POINTING, BoxCodec)
    assert "ego frame" in POINTING.instruction.lower()
    with pytest.raises(SceneError, match="'tram'"):
        ALONE.encode(boxes_of([row(1.0, label="tram")]))
    with pytest.raises(SceneError, match="not finite"):
        ALONE.encode(boxes_of([row(math.nan)]))
    with pytest.raises(ValueError, match="bins is 4"):
        BoxTokenCodec(bins=4)
    with pytest.raises(ValueError, match="holds no box"):
        BoxTokenCodec(references=0, max_new=0)
    with pytest.raises(ValueError, match="'speed' is none of x, y"):
        BoxTokenCodec(corrected=["speed"])
    assert set(COLUMNS) == set(
        BoxTokenCodec(references=1).instruction.rstrip(".").split("corrections of ")[1].split(".")[0].split(", ")
    )
