from __future__ import annotations

from typing import get_args

import pytest

from framework.scene.inputs import ABSENT, Input, with_inputs
from framework.scene.world.generate import generate_scene

SCENE = generate_scene(3, "straight")
FIELDS = {"cameras": "cameras", "lidar": "lidar", "radar": "radar", "boxes": "perception"}


@pytest.mark.parametrize("inputs", [(), ("boxes",), ("cameras", "radar"), tuple(FIELDS)])
def test_only_the_named_inputs_remain_and_nothing_else_changes(inputs: tuple[Input, ...]) -> None:
    shown = with_inputs(SCENE, inputs)
    for name, field in FIELDS.items():
        assert bool(getattr(SCENE, field))
        assert getattr(shown, field) is getattr(SCENE, field) if name in inputs else not getattr(shown, field)
    assert (shown.boxes, shown.history, shown.questions) == (SCENE.boxes, SCENE.history, SCENE.questions)


def test_without_a_choice_all_remain() -> None:
    assert with_inputs(SCENE, None) is SCENE
    assert set(ABSENT) == set(get_args(Input)) == set(FIELDS)
