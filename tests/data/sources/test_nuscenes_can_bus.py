"""The CAN bus of nuScenes: the newest measured state up to a moment, and what is absent by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from framework.data.sources.nuscenes.can_bus import read_message, state_at, survey_can_bus

SCENE, NOW = "scene-0061", 1_532_402_927_647_951
"""A scene, and a moment of it in microseconds."""


def rows_of(message: str) -> list[dict[str, Any]]:
    """Two seconds of a message about the moment, whose values count steps from it."""
    rate = {"pose": 50, "steeranglefeedback": 100, "vehicle_monitor": 2, "imu": 100}[message]
    rows = []
    for step in range(-rate, rate + 1):
        row = {
            "pose": {"vel": [8.0 + step, 0.1, 0.0], "accel": [0.01 * step, 0.0, 9.8], "rotation_rate": [0, 0, 0.001]},
            "steeranglefeedback": {"value": 0.5 + 0.001 * step},
            "vehicle_monitor": {"throttle": 250, "brake": 2 + step, "vehicle_speed": 28.8},
            "imu": {},
        }[message]
        rows.append({"utime": NOW + step * 1_000_000 // rate, **row})
    return rows


@pytest.fixture
def root(tmp_path: Path) -> Path:
    read_message.cache_clear()
    (tmp_path / "can_bus").mkdir()
    for message in ("pose", "steeranglefeedback", "vehicle_monitor", "imu"):
        write(tmp_path, message, rows_of(message))
    return tmp_path


def write(root: Path, message: str, rows: Any) -> None:
    (root / "can_bus" / f"{SCENE}_{message}.json").write_text(json.dumps(rows))


def test_the_state_is_the_newest_up_to_the_moment(root: Path) -> None:
    state = {"acceleration_mps2": 0.0, "brake_bar": 2.0, "speed_mps": 8.0, "steering_wheel_rad": 0.5}
    assert state_at(root, SCENE, NOW * 1000) == {**state, "throttle": 0.25, "yaw_rate_radps": 0.001}
    before = state_at(root, SCENE, NOW * 1000 - 1)
    assert (before["speed_mps"], before["brake_bar"]) == (7.0, 1.0)
    assert before["steering_wheel_rad"] == pytest.approx(0.499)
    assert state_at(root, SCENE, (NOW + 1_500_000) * 1000) == {"brake_bar": 4.0, "throttle": 0.25}, "others are too old"


@pytest.mark.guarantee("No input of a moment holds anything later than it")
def test_later_rows_change_nothing(root: Path) -> None:
    before = state_at(root, SCENE, NOW * 1000)
    for message in ("pose", "steeranglefeedback", "vehicle_monitor"):
        write(root, message, [row for row in rows_of(message) if row["utime"] <= NOW])
    read_message.cache_clear()
    assert state_at(root, SCENE, NOW * 1000) == before


def test_what_is_absent_unread_or_faulty_is_named(root: Path) -> None:
    assert survey_can_bus(root, SCENE) == {"CAN bus message imu that is not read": 1}
    assert survey_can_bus(root, "scene-0161") == {"scene without files of the CAN bus": 1}
    (root / "can_bus" / f"{SCENE}_vehicle_monitor.json").unlink()
    rows = rows_of("steeranglefeedback")
    del rows[0]["value"]
    write(root, "steeranglefeedback", [*rows, {"utime": NOW, "value": "left"}])
    write(root, "pose", {"utime": NOW})
    read_message.cache_clear()
    named = survey_can_bus(root, SCENE)
    assert named.pop("scene without vehicle_monitor of the CAN bus") == 1
    reasons = " ".join(named)
    assert "_pose.json: holds a dict, not a list of rows; unpack can_bus.zip again" in reasons
    assert "_steeranglefeedback.json: KeyError('value'): a column is missing" in reasons
    assert state_at(root, SCENE, NOW * 1000) == {"steering_wheel_rad": 0.5}
