from __future__ import annotations

import dataclasses
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from framework.model.codecs.control_tokens import ControlTokenCodec, _advance, _Nearest
from framework.scene.codec import ActionCodec
from framework.scene.kinematics import unicycle_rollout, unicycle_step
from framework.scene.types import Scene, SceneError, Trajectory
from framework.scene.world.generate import generate_scene
from framework.scene.world.scenarios import KINDS
from tests.model.codecs.reading import accepts
from tests.model.presets import preset


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [generate_scene(seed, kind, rig=None) for seed in range(3) for kind in KINDS]


def driven(speed: float, controls: np.ndarray, rate_hz: float = 4.0) -> Scene:
    """A scene whose future is exactly what `controls` lead to."""
    start = np.array([0.0, 0.0, 0.0, speed])
    future = Trajectory(unicycle_rollout(start, controls, 1 / rate_hz), rate_hz)
    return Scene(id="driven", kind="straight", history=Trajectory(start[None], rate_hz), future=future)


def distances(codec: ActionCodec, scene: Scene) -> np.ndarray:
    """How far the decoded future is from the expert's, at each step (m)."""
    decoded = codec.decode(codec.encode(scene), scene)
    assert decoded is not None
    return np.hypot(*(decoded.states - scene.future.states)[:, :2].T)


@pytest.mark.parametrize(("bins", "limit"), [(65, 0.02), (17, 0.1)])
@pytest.mark.fast_cases(1)
def test_quantised_futures_of_the_world_stay_close(scenes: list[Scene], bins: int, limit: float) -> None:
    codec = ControlTokenCodec(bins=bins)
    assert max(distances(codec, scene).mean() for scene in scenes) < limit


def test_rounding_does_not_accumulate() -> None:
    """Each control lies half a bin off a bin, so that rounding open-loop would add up to metres in 20 s."""
    codec = ControlTokenCodec(bins=17, steps=80)
    off = np.array([(codec.accelerations[9] - codec.accelerations[8]) * 0.49, codec.curvatures[9] * 0.49])
    errors = distances(codec, driven(5.0, np.tile(off, (80, 1))))
    open_loop = driven(5.0, np.zeros((80, 2)))
    assert np.hypot(*(open_loop.future.states - driven(5.0, np.tile(off, (80, 1))).future.states)[-1, :2]) > 50
    assert errors.max() < 0.5
    assert errors[-20:].mean() < 0.3


@given(
    st.floats(0, 25),
    st.lists(st.tuples(st.floats(-6, 4), st.floats(-1, 1)), min_size=20, max_size=20),
)
@settings(max_examples=60, deadline=None)
def test_any_drivable_future_is_spelled_closely(speed: float, raw: list[tuple[float, float]]) -> None:
    controls = np.array([(a, c * min(0.15, 4.0 / max(speed, 1.0) ** 2)) for a, c in raw])
    assert distances(ControlTokenCodec(), driven(speed, controls)).mean() < 0.1


@given(st.floats(0, 30), st.floats(-9, 9), st.floats(0.1, 1.0))
def test_scalar_advance_is_the_unicycle(speed: float, acceleration: float, dt: float) -> None:
    expected = unicycle_step(np.array([0.0, 0.0, 0.0, speed]), np.array([acceleration, 0.0]), dt)
    distance, reached = _advance(speed, acceleration, dt)
    np.testing.assert_allclose([distance, reached], expected[[0, 3]], atol=1e-9)


@given(st.floats(-2, 2))
def test_nearest_is_the_nearest(number: float) -> None:
    values = ControlTokenCodec(bins=17, curvature_limit=1.0).curvatures
    distance = np.abs(values - number)
    assert distance[_Nearest(values)(number)] == pytest.approx(distance.min())


def test_standing_is_zeros_and_stays() -> None:
    codec = ControlTokenCodec()
    scene = driven(0.0, np.zeros((20, 2)))
    assert codec.encode(scene) == "<|accel_32|><|curve_32|>" * 20
    assert distances(codec, scene).max() == 0


def test_hard_braking_ends_standing() -> None:
    scene = driven(8.0, np.tile([-5.0, 0.0], (20, 1)))
    decoded = ControlTokenCodec().decode(ControlTokenCodec().encode(scene), scene)
    assert decoded.states[-1, 3] < 0.1
    assert distances(ControlTokenCodec(), scene).max() < 0.1


def test_decode_starts_from_the_current_speed() -> None:
    codec = ControlTokenCodec(steps=2)
    decoded = codec.decode("<|accel_32|><|curve_32|>" * 2, driven(12.0, np.zeros((2, 2))))
    np.testing.assert_allclose(decoded.states, [[3, 0, 0, 12], [6, 0, 0, 12]], atol=1e-12)
    assert decoded.rate_hz == 4.0


def test_grammar_accepts_what_decode_parses_and_nothing_else(scenes: list[Scene]) -> None:
    codec = ControlTokenCodec(bins=17)
    good = codec.encode(scenes[0])
    bad = [
        "",
        "none",
        good + " ",
        " " + good,
        good + "<|accel_0|>",
        good + "<|accel_0|><|curve_0|>",
        good.removesuffix(good[good.rindex("<|accel") :]),
        good.replace("<|accel", "<|curve", 1),
        "<|accel_17|><|curve_0|>" * 20,
        "<|accel_08|><|curve_0|>" * 20,
        "<|accel_٣|><|curve_0|>" * 20,
        "<|curve_1|><|accel_1|>" * 20,
    ]
    for scene in scenes[:9]:
        assert accepts(codec, codec.encode(scene))
    for text in bad:
        assert codec.decode(text, scenes[0]) is None, text
        assert not accepts(codec, text), text


def test_encode_is_fast_enough_for_a_data_loader(scenes: list[Scene]) -> None:
    codec = ControlTokenCodec()
    times = []
    for scene in scenes:
        begin = time.perf_counter()
        codec.encode(scene)
        times.append(time.perf_counter() - begin)
    assert np.median(times) < 1e-3


def test_preset_is_the_default_and_tokens_are_distinct() -> None:
    codec = ControlTokenCodec(**preset("codecs/action/control_tokens.yaml"))
    assert isinstance(codec, ActionCodec)
    assert len(set(codec.tokens)) == 2 * codec.bins == 130
    assert codec.accelerations[32] == codec.curvatures[32] == 0


def test_errors_name_the_field() -> None:
    codec, scene = ControlTokenCodec(), driven(5.0, np.zeros((20, 2)))
    with pytest.raises(ValueError, match=r"codecs\.action\.bins is 64"):
        ControlTokenCodec(bins=64)
    with pytest.raises(SceneError, match="`history`"):
        codec.encode(dataclasses.replace(scene, history=None))
    with pytest.raises(SceneError, match="`future` is missing"):
        codec.encode(dataclasses.replace(scene, future=None))
    with pytest.raises(SceneError, match="20 states at 10 Hz"):
        codec.encode(dataclasses.replace(scene, future=Trajectory(scene.future.states, 10.0)))
    with pytest.raises(SceneError, match="NaN"):
        codec.encode(dataclasses.replace(scene, future=Trajectory(np.full((20, 4), np.nan))))
