from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from framework.model.codecs.boxes import BoxTextCodec
from framework.scene.codec import BoxCodec
from framework.scene.types import CLASSES, Boxes, SceneError
from framework.scene.world.generate import generate_scene
from framework.scene.world.scenarios import KINDS
from tests.model.codecs.reading import accepts
from tests.model.presets import preset

CODECS = {name: BoxTextCodec(**preset(f"codecs/boxes/{name}.yaml")) for name in ("text", "qwen")}
place, size = st.floats(-990, 990), st.floats(0.001, 20)
box = st.tuples(place, place, place, size, size, size, st.floats(-math.pi, math.pi), place, place)
many = st.lists(st.tuples(st.sampled_from(CLASSES), box), max_size=6)


def boxes_of(rows: list[tuple[str, tuple[float, ...]]]) -> Boxes:
    return Boxes(np.array([row for _, row in rows]).reshape(-1, 9), tuple(label for label, _ in rows))


def by_distance(boxes: Boxes) -> list[int]:
    return sorted(range(len(boxes)), key=lambda i: math.hypot(*boxes.values[i, :2]))


@pytest.mark.parametrize("name", CODECS)
@given(rows=many)
def test_round_trip_is_exact_after_rounding(name: str, rows: list[tuple[str, tuple[float, ...]]]) -> None:
    codec, boxes = CODECS[name], boxes_of(rows)
    decoded = codec.decode(codec.encode(boxes))
    order = by_distance(boxes)
    assert decoded.labels == tuple(boxes.labels[i] for i in order)
    wanted = boxes.values[order]
    wanted[:, 3:6] = np.maximum(wanted[:, 3:6], 10.0**-codec.decimals)
    rounded = np.array([float(f"{v:.{codec.decimals}f}") for v in wanted.ravel()]).reshape(-1, 9)
    np.testing.assert_array_equal(decoded.values[:, :6], rounded[:, :6])
    np.testing.assert_array_equal(decoded.values[:, 7:], rounded[:, 7:] if name == "text" else 0)
    turned = np.angle(np.exp(1j * (decoded.values[:, 6] - wanted[:, 6])))
    half_a_step = math.radians(0.5) if name == "text" else 0.005 * math.pi
    assert np.abs(turned).max(initial=0) <= half_a_step + 1e-9
    assert (decoded.values[:, 6] > -math.pi).all()
    assert (decoded.values[:, 6] <= math.pi).all()
    again = codec.decode(codec.encode(decoded))
    assert sorted(map(tuple, again.values)) == sorted(map(tuple, decoded.values))


@pytest.mark.parametrize("name", CODECS)
def test_grammar_accepts_the_worlds_boxes(name: str) -> None:
    codec = CODECS[name]
    for kind in KINDS:
        text = codec.encode(generate_scene(1, kind, rig=None).boxes)
        assert accepts(codec, text)
        assert codec.decode(text) is not None
    assert accepts(codec, codec.encode(boxes_of([])))


ROW = ("car", (12.34, -4.56, 0.8, 4.6, 1.9, 1.6, -math.pi / 2, math.nan, math.nan))


def test_the_forms_look_as_documented() -> None:
    assert CODECS["text"].encode(boxes_of([ROW])) == "car 12.3 -4.6 0.8 4.6 1.9 1.6 -90 0.0 0.0"
    assert json.loads(CODECS["qwen"].encode(boxes_of([ROW]))) == [
        {"bbox_3d": [12.34, -4.56, 0.8, 4.6, 1.9, 1.6, 0, 0, -0.5], "label": "car"}
    ]
    assert [codec.encode(boxes_of([])) for codec in CODECS.values()] == ["none", "[]"]
    assert [len(codec.decode(codec.encode(boxes_of([])))) for codec in CODECS.values()] == [0, 0]


@pytest.mark.parametrize("name", CODECS)
def test_broken_answers_are_refused(name: str) -> None:
    codec = CODECS[name]
    good = codec.encode(boxes_of([ROW, ROW]))
    assert accepts(codec, good)
    bad = [
        "",
        good + "\n",
        good[:-1] + ",",
        good.replace("car", "cat"),
        good.replace("car", "CAR"),
        good + codec.encode(boxes_of([])),
    ]
    bad += [
        good.replace("12.3", "1012.3"),
        good.replace("1.9", "-1.9"),
        good.replace("1.6", "0.0"),
        good.replace("0.8", "0.8000"),
        good.replace("0.8", "nan"),
    ]
    bad += [good.replace("-90", "-190").replace("-0.5", "-1.5"), good.replace("1.9 ", "").replace("1.90, ", "")]
    for text in bad:
        assert text != good
        assert codec.decode(text) is None, text
        assert not accepts(codec, text), text


def test_the_farthest_are_dropped_and_more_are_refused() -> None:
    near, nearer, far = (("car", (x, 0.0, 0.5, 4.0, 2.0, 1.5, 0.0, 0.0, 0.0)) for x in (5.0, -3.0, 30.0))
    codec = BoxTextCodec(max_boxes=2)
    assert codec.decode(codec.encode(boxes_of([far, near, nearer]))).values[:, 0].tolist() == [-3.0, 5.0]
    three = BoxTextCodec(max_boxes=3).encode(boxes_of([far, near, nearer]))
    assert codec.decode(three) is None
    assert not accepts(codec, three)


def test_scores_fall_with_the_order() -> None:
    codec = BoxTextCodec(max_boxes=4)
    assert codec.decode(codec.encode(boxes_of([ROW] * 4))).scores.tolist() == [1, 1 / 2, 1 / 3, 1 / 4]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (("tram", ROW[1]), "'tram'"),
        (("car", (math.nan, *ROW[1][1:])), "boxes: x is nan"),
        (("car", (1e4, *ROW[1][1:])), "boxes: x is 10000"),
    ],
)
def test_what_cannot_be_spelled_is_named(row: tuple[str, tuple[float, ...]], message: str) -> None:
    with pytest.raises(SceneError, match=message):
        CODECS["text"].encode(boxes_of([row]))


def test_instructions_state_frame_units_and_form() -> None:
    for codec in CODECS.values():
        assert isinstance(codec, BoxCodec)
        assert "ego frame" in codec.instruction
        assert "metres" in codec.instruction
    with pytest.raises(ValueError, match="max_boxes 0"):
        BoxTextCodec(max_boxes=0)
    with pytest.raises(ValueError, match="'kitti': choose one of ego, qwen"):
        BoxTextCodec(max_boxes=1, form="kitti")
