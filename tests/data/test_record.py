"""The record: every scene comes back to the bit, other versions and damaged records are refused by name."""

from __future__ import annotations

import dataclasses
import json

import pytest

from framework.data.record import COLUMNS, SCHEMA_VERSION, decode, encode
from framework.scene.types import Scene, SceneError
from tests.data.scenes import full_scene, same

OPTIONAL = ("lidar", "radar", "perception", "boxes", "history", "future", "surroundings", "caption", "thought")


def test_a_full_scene_comes_back_to_the_bit() -> None:
    scene = full_scene()
    assert same(decode(encode(scene)), scene)


@pytest.mark.parametrize("absent", OPTIONAL)
def test_a_scene_without_a_field_comes_back_without_it(absent: str) -> None:
    scene = dataclasses.replace(full_scene(), **{absent: None})
    back = decode(encode(scene))
    assert getattr(back, absent) is None
    assert same(back, scene)


@pytest.mark.parametrize("present", OPTIONAL)
def test_a_scene_with_one_field_alone_comes_back(present: str) -> None:
    scene = Scene("bare", "made", **{present: getattr(full_scene(), present)})
    assert same(decode(encode(scene)), scene)


def test_cameras_and_nothing_else_come_back() -> None:
    scene = Scene("bare", "made", cameras=full_scene().cameras)
    assert same(decode(encode(scene)), scene)


def test_columns_are_what_is_written_and_facts_are_json() -> None:
    record = encode(full_scene())
    assert list(record) == list(COLUMNS)
    assert json.loads(json.dumps(record["facts"])) == record["facts"]


def test_another_schema_version_is_refused_by_the_records_name() -> None:
    record = encode(full_scene("scene-17")) | {"schema": SCHEMA_VERSION + 1}
    with pytest.raises(SceneError, match=f"record scene-17: schema: version {SCHEMA_VERSION + 1}.*convert"):
        decode(record)


@pytest.mark.parametrize(
    ("column", "damage", "complaint"),
    [
        ("arrays", lambda value: value[:-9], "record full: arrays"),
        ("frames", lambda value: value[:-1], "record full: frames"),
        ("facts", lambda value: {k: v for k, v in value.items() if k != "command"}, "record full: 'command'"),
    ],
)
def test_a_damaged_record_is_refused_by_name_and_field(column: str, damage: object, complaint: str) -> None:
    record = encode(full_scene())
    with pytest.raises(SceneError, match=complaint):
        decode(record | {column: damage(record[column])})  # type: ignore[operator]
