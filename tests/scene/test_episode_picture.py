"""An episode that moves: each car is where it was driven, at the moment at which it was there."""

from __future__ import annotations

import re

import numpy as np
import pytest

from framework.scene.episode_picture import HOLD_S, RoadUsers, animated_episode
from framework.scene.picture import view_of
from framework.scene.world.generate import generate_scene

ANIMATED = re.compile(r'type="(translate|rotate)" values="([^"]*)" keyTimes="([^"]*)" dur="([^"]*)s"')


def test_every_car_is_where_it_was_at_each_moment() -> None:
    turn = np.radians([0.0, 90.0, 190.0])
    ego = np.stack([[0.0, 10.0, 20.0], [0.0, 0.0, 5.0], np.angle(np.exp(1j * turn))], axis=1)
    other = np.array([[[30.0, 2.0, 0.0], [30.0, 2.0, 0.0], [30.0, 2.0, 0.0]]])
    users = RoadUsers(other, np.array([[4.0, 2.0]]), np.array([[True, False, True]]))
    drawing = animated_episode(generate_scene(1), {"<after>": ("#2563eb", ego)}, users, rate_hz=4.0)
    moves = [
        (kind, values.split(";"), times, float(seconds)) for kind, values, times, seconds in ANIMATED.findall(drawing)
    ]
    assert [kind for kind, *_ in moves] == ["translate", "rotate", "translate", "rotate"], "the other, then the ego"
    view = view_of([ego])
    places = np.array([[*map(float, place.split(","))] for place in moves[2][1]])
    assert np.allclose(places, view.pixels(ego[[0, 1, 2, 2]]), atol=0.05), "at the end it stands"
    assert [float(turn) for turn in moves[3][1]] == pytest.approx([0.0, -90.0, -190.0, -190.0]), (
        "left is against the clock"
    )
    seconds = 0.5 + HOLD_S
    assert {each[3] for each in moves} == {seconds}
    assert [float(time) for time in moves[2][2].split(";")] == pytest.approx(
        [0, 0.25 / seconds, 0.5 / seconds, 1], abs=1e-4
    )
    assert 'attributeName="visibility" calcMode="discrete" values="visible;hidden;visible;visible"' in drawing
    assert "&lt;after&gt;" in drawing


def test_a_drive_that_ends_early_stands_at_its_end() -> None:
    long, short = np.zeros((4, 3)), np.zeros((2, 3))
    short[1, 0] = 3.0
    nobody = RoadUsers(np.zeros((0, 4, 3)), np.zeros((0, 2)), np.zeros((0, 4), dtype=bool))
    drawing = animated_episode(
        generate_scene(1), {"before": ("#f97316", short), "after": ("#2563eb", long)}, nobody, rate_hz=4.0
    )
    values = [values.split(";") for kind, values, *_ in ANIMATED.findall(drawing) if kind == "translate"]
    assert [len(each) for each in values] == [5, 5]
    assert len(set(values[0][1:])) == 1
