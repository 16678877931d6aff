"""What is said about recordings is what their annotations say."""

from __future__ import annotations

import numpy as np
import pytest

from framework.data.sources.annotate import caption_of, command_of, questions_of, unmapped
from framework.scene.types import Boxes, Trajectory


def _boxes(*placed: tuple[str, float, float]) -> Boxes:
    values = np.array([[x, y, 0.8, 4.0, 2.0, 1.6, 0.0, 0.0, 0.0] for _, x, y in placed]).reshape(-1, 9)
    return Boxes(values, tuple(label for label, _, _ in placed))


def test_questions_are_answered_from_the_boxes() -> None:
    boxes = _boxes(("bus", 30.0, 4.0), ("traffic_cone", 3.0, -12.0), ("car", 80.0, 0.0), ("bus", -20.0, 0.0))
    answers = {question.topic: question.answer for question in questions_of(boxes)}
    assert answers == {"count": "2", "nearest": "traffic cone", "side": "right", "distance": "10"}
    assert caption_of(boxes) == "Around the ego: 2 buses, 1 traffic cone."


def test_an_empty_road_is_described_too() -> None:
    assert [question.answer for question in questions_of(_boxes())] == ["0"]
    assert caption_of(_boxes(("car", 80.0, 0.0))) == "Around the ego: nobody."


@pytest.mark.parametrize(("turn", "command"), [(0.1, "follow"), (1.6, "left"), (-1.6, "right"), (3.6, "left")])
def test_commands_follow_the_turn(turn: float, command: str) -> None:
    heading = np.linspace(0.0, turn, 21)[1:]
    wrapped = (heading + np.pi) % (2 * np.pi) - np.pi
    assert command_of(Trajectory(np.c_[np.zeros((20, 2)), wrapped, np.ones(20)])) == command


def test_classes_that_we_lack_are_counted() -> None:
    assert unmapped(["SIGN", "BOLLARD", "SIGN"]) == {"unmapped": '{"BOLLARD": 1, "SIGN": 2}'}
    assert unmapped([]) == {}
