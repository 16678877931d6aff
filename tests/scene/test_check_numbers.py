"""Numbers that no record may hold, field by field, and the ones that merely look odd."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from framework.data.shards.record import decode, encode
from framework.scene.check import box_fault, check_scene, plan_fault
from framework.scene.types import Boxes, Camera, Lidar, Radar, Scene, Surroundings, Trajectory

STATES = np.column_stack([np.arange(1.0, 5.0), np.zeros((4, 2)), np.full(4, 4.0)])
BOX = np.array([[10.0, 0.0, 0.8, 4.5, 1.9, 1.6, 0.1, 3.0, np.nan]])
INTRINSIC = np.array([[80.0, 0.0, 48.0], [0.0, 80.0, 32.0], [0.0, 0.0, 1.0]])
FAR = np.eye(4) + 1e30 * np.eye(4, k=3)


def camera(name: str = "front", **changes: Any) -> Camera:
    return replace(Camera(name, (b"\xff\xd8",), np.zeros(1), INTRINSIC, np.eye(4), 96, 64), **changes)


def scene(**changes: Any) -> Scene:
    sound = Scene("a", "b", boxes=Boxes(BOX, ("car",)), future=Trajectory(STATES), cameras=(camera(),))
    return replace(sound, **changes)


def column(column: int, value: float) -> Boxes:
    values = BOX.copy()
    values[0, column] = value
    return Boxes(values, ("car",))


def limit(value: float) -> Surroundings:
    return Surroundings(np.zeros((1, 4, 3)), speed_limit=value)


BROKEN = {
    "rate_hz": [{"future": Trajectory(STATES, rate)} for rate in (np.inf, np.nan, 1e30, 5e-324, 1e-300, -0.0, True)],
    "states: a position leaps": [
        {"future": Trajectory(STATES * [200.0, 1.0, 1.0, 1.0])},
        {"future": Trajectory(STATES + np.array([900.0, 0.0, 0.0, 0.0]))},
    ],
    "a size is not positive": [{"boxes": column(4, value)} for value in (5e-324, 1e-200, 1e-9, -0.0)],
    "boxes.points": [
        {"boxes": Boxes(BOX, ("car",), points=np.array([count]))} for count in (np.nan, np.inf, 0.5, -1, -1.0)
    ],
    "boxes.track_ids": [{"boxes": Boxes(BOX, ("car",), track_ids=np.array([each]))} for each in (np.nan, 0.5)],
    "lidar.points": [
        {"lidar": Lidar(np.array([row]), np.eye(4))}
        for row in ([1.0, 0, 1e39, 0], [1e300, 0, 0, 0], [1.0, 0, 0, 1e6], [1.0, 0, 0, -1e300])
    ],
    "radar.returns": [
        {"radar": Radar(np.array([row]), np.eye(4))}
        for row in ([1e39, 0, 0, 0, 0], [1.0, 0, 0, 1e5, 0], [1.0, 0, 0, -1e300, 0], [1.0, 0, 0, 0, 1e39])
    ],
    "from the ego; check the unit": [
        {"lidar": Lidar(np.zeros((1, 4)), FAR)},
        {"cameras": (camera(extrinsic=FAR),)},
    ],
    "name: is empty": [{"cameras": (camera(name),)} for name in ("", " ")],
    "cameras[1].name: 'front' is the name of a camera before": [{"cameras": (camera(), camera())}],
    "speed_limit": [{"surroundings": limit(value)} for value in (5e-324, 1e-9, -0.0, np.nan, np.inf, 1e30, True)],
    "id:": [{"id": name} for name in ("", " ", "a\nb", "a\0b", "a" * 10_000)],
    "provenance:": [{"provenance": {"log": 3}}, {"provenance": {3: "log"}}, {"provenance": ["log"]}],
}
"""{what is said: scenes with it}."""


@pytest.mark.fault("numbers that no record may hold")
@pytest.mark.parametrize("said", BROKEN)
def test_what_no_record_may_hold_is_named(said: str) -> None:
    for changes in BROKEN[said]:
        problems = check_scene(scene(**changes))
        assert any(said in problem for problem in problems), (changes, problems)


@pytest.mark.fault("numbers that no record may hold")
def test_numbers_that_only_look_odd_are_taken_and_kept() -> None:
    still = STATES * [1.0, 1.0, 1.0, -0.0]
    for changes in (
        {"future": Trajectory(STATES, np.float32(4))},
        {"future": Trajectory(STATES, np.int64(4)), "surroundings": limit(np.float32(13.5))},
        {"future": Trajectory(STATES.astype(np.int64), 4)},
        {"future": Trajectory(still)},
        {"cameras": (camera(width=np.int64(96), height=np.int64(64), times=np.array([-0.0])),)},
        {"boxes": Boxes(BOX, ("car",), points=np.array([3.0]), track_ids=np.array([7], np.uint8))},
        {"boxes": Boxes(np.zeros((0, 9)), ()), "lidar": Lidar(np.zeros((0, 4)), np.eye(4))},
    ):
        given = scene(**changes)
        assert check_scene(given) == [], changes
        record = encode(given)
        assert check_scene(decode({**record, "facts": json.loads(json.dumps(record["facts"]))})) == []


@pytest.mark.fault("plans that are not finite")
def test_answers_of_no_numbers_are_of_no_shape_and_boxes_of_no_extent_are_absurd() -> None:
    for states in (STATES.astype(object), STATES.astype(str), STATES.astype(complex)):
        assert plan_fault(Trajectory(states), 4, 4.0) == "shape"
    assert {box_fault(column(4, value)) for value in (5e-324, 1e-200, -0.0)} == {"absurd"}
