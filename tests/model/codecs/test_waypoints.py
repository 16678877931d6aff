from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from framework.model.codecs.waypoints import WaypointCodec
from framework.scene.codec import ActionCodec
from framework.scene.types import Scene, SceneError, Trajectory
from framework.scene.world.generate import generate_scene
from framework.scene.world.scenarios import KINDS
from tests.model.codecs.reading import accepts
from tests.model.presets import preset


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [generate_scene(seed, kind, rig=None) for seed in range(2) for kind in KINDS]


def with_points(points: np.ndarray) -> Scene:
    states = np.column_stack([points, np.zeros((len(points), 2))])
    return Scene(id="points", kind="straight", future=Trajectory(states))


@given(st.lists(st.tuples(*[st.floats(-999, 999)] * 2), min_size=4, max_size=4), st.integers(1, 3))
def test_positions_round_trip(points: list[tuple[float, float]], decimals: int) -> None:
    codec = WaypointCodec(steps=4, decimals=decimals)
    scene = with_points(np.array(points))
    decoded = codec.decode(codec.encode(scene), scene)
    expected = [[float(f"{v:.{decimals}f}") for v in point] for point in points]
    np.testing.assert_array_equal(decoded.states[:, :2], expected)


def test_states_of_the_world_are_recovered(scenes: list[Scene]) -> None:
    codec = WaypointCodec(decimals=3)
    for scene in scenes:
        decoded, wanted = codec.decode(codec.encode(scene), scene).states, scene.future.states
        assert np.hypot(*(decoded - wanted)[:, :2].T).max() < 1e-3
        assert np.abs(decoded - wanted)[:-1, 3].max() < 0.5
        fast = wanted[:-1, 3] > 1.0
        turned = np.abs(np.exp(1j * decoded[:-1, 2]) - np.exp(1j * wanted[:-1, 2]))
        assert turned[fast].max(initial=0.0) < 0.05


def test_a_circle_is_read_with_its_speed_and_headings() -> None:
    angles = 0.1 * np.arange(1, 21)
    points = 10.0 * np.stack([np.sin(angles), 1 - np.cos(angles)], axis=1)
    decoded = WaypointCodec(decimals=3).decode(
        WaypointCodec(decimals=3).encode(with_points(points)), with_points(points)
    )
    np.testing.assert_allclose(decoded.states[:-1, 2], angles[:-1], atol=1e-3)
    np.testing.assert_allclose(decoded.states[:-1, 3], 4.0 * 10 * np.sin(0.1), atol=1e-2)
    assert decoded.states[-1, 2] == pytest.approx(angles[-1] - 0.05, abs=1e-3)  # the last is that of the way to it


def test_a_standing_vehicle_keeps_its_heading() -> None:
    text = "(0.5,0.5) (1.0,1.0) (1.0,1.0) (1.0,1.1) (1.0,1.0)"
    decoded = WaypointCodec(steps=5).decode(text, with_points(np.zeros((5, 2))))
    np.testing.assert_allclose(decoded.states[:, 2], np.pi / 4, atol=1e-12)
    assert decoded.states[2, 3] == pytest.approx(0.2)


def test_grammar_accepts_what_decode_parses_and_nothing_else(scenes: list[Scene]) -> None:
    codec = WaypointCodec()
    good = codec.encode(scenes[0])
    for scene in scenes:
        assert accepts(codec, codec.encode(scene))
    bad = [
        "",
        good + " ",
        f"{good} (0.0,0.0)",
        good.rpartition(" ")[0],
        good.replace(",", ", ", 1),
        good.replace(".", "", 1),
    ]
    bad += [" ".join(["(1000.0,0.0)"] * 20), " ".join(["(01.0,0.0)"] * 20), " ".join(["(1.0,nan)"] * 20)]
    for text in bad:
        assert codec.decode(text, scenes[0]) is None, text
        assert not accepts(codec, text), text


def test_preset_fits_and_errors_name_the_field() -> None:
    codec = WaypointCodec(**preset("codecs/action/waypoints.yaml"))
    assert isinstance(codec, ActionCodec)
    scene = with_points(np.full((20, 2), 1200.0))
    with pytest.raises(SceneError, match="scene points: a coordinate of `future` is 1200"):
        codec.encode(scene)
    with pytest.raises(SceneError, match="`future` is missing"):
        codec.encode(dataclasses.replace(scene, future=None))
