"""The record: every scene comes back to the bit, other versions and damaged records are refused by name."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pytest

from framework.data.shards.record import COLUMNS, SCHEMA_VERSION, decode, encode
from framework.scene.types import Lens, Scene, SceneError
from tests.data.scenes import full_scene, same

OPTIONAL = ("lidar", "radar", "perception", "boxes", "history", "future", "surroundings", "caption", "thought")


def test_a_full_scene_comes_back_to_the_bit() -> None:
    scene = full_scene()
    assert same(decode(encode(scene)), scene)


@pytest.mark.parametrize("absent", OPTIONAL)
def test_a_scene_without_a_field_comes_back_without_it(absent: str) -> None:
    lacking: dict[str, Any] = {absent: None}
    scene = dataclasses.replace(full_scene(), **lacking)
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


def test_distant_road_users_come_back_with_all_that_boxes_hold() -> None:
    full = full_scene()
    assert full.boxes is not None
    assert full.surroundings is not None
    for boxes in (full.boxes, dataclasses.replace(full.boxes, track_ids=None, scores=None, points=None)):
        around = dataclasses.replace(full.surroundings, distant=boxes, distant_agents=full.surroundings.agents + 1.0)
        scene = dataclasses.replace(full, surroundings=around)
        assert same(decode(encode(scene)), scene)


def test_a_clip_comes_back_between_cameras_of_images() -> None:
    front, back = full_scene().cameras
    filmed = dataclasses.replace(front, name="left", frames=(), clip=b"any bytes")
    scene = Scene("bare", "made", cameras=(front, filmed, back))
    assert same(decode(encode(scene)), scene)


def test_a_lens_comes_back_next_to_a_pinhole() -> None:
    front, back = full_scene().cameras
    bent = dataclasses.replace(back, lens=Lens("fisheye", np.array([0.1, -0.02, 0.003, 1e-4])))
    scene = Scene("bare", "made", cameras=(front, bent))
    assert same(decode(encode(scene)), scene)


@pytest.mark.parametrize("version", [1, 2])
def test_a_record_of_an_earlier_version_is_migrated_when_it_is_read(version: int) -> None:
    record = _earlier(full_scene(), version)
    kept = json.dumps(record["facts"])
    assert same(decode(record), full_scene())
    assert json.dumps(record["facts"]) == kept, "the caller's record stays what it was"
    with pytest.raises(SceneError, match="record full: 'cameras'"):
        decode(record | {"facts": {}})


def _earlier(scene: Scene, version: int) -> dict[str, Any]:
    """As an earlier version wrote it: cameras know no lenses, in the first no clips either."""
    record = encode(scene)
    for camera in record["facts"]["cameras"]:
        del camera["lens"]
        if version == 1:
            del camera["clip"]
    return record | {"schema": version}


def test_columns_are_what_is_written_and_facts_are_json() -> None:
    record = encode(full_scene())
    assert list(record) == list(COLUMNS)
    assert json.loads(json.dumps(record["facts"])) == record["facts"]


@pytest.mark.parametrize("version", [SCHEMA_VERSION + 1, 0, None, "1"])
def test_another_schema_version_is_refused_by_the_records_name(version: object) -> None:
    record = encode(full_scene("scene-17")) | {"schema": version}
    with pytest.raises(SceneError, match=f"record scene-17: schema: version {version}, this code reads 1 to 3; conv"):
        decode(record)


@pytest.mark.attack("archive", "a damaged record", "refused by name and field")
@pytest.mark.parametrize(
    ("column", "damage", "complaint"),
    [
        ("arrays", lambda value: value[:-9], "record full: arrays"),
        ("frames", lambda value: value[:-1], "record full: frames"),
        ("facts", lambda value: {k: v for k, v in value.items() if k != "command"}, "record full: 'command'"),
        ("facts", lambda value: [value], "record full: facts: no object"),
    ],
)
def test_a_damaged_record_is_refused_by_name_and_field(column: str, damage: object, complaint: str) -> None:
    record = encode(full_scene())
    with pytest.raises(SceneError, match=complaint):
        decode(record | {column: damage(record[column])})  # type: ignore[operator]
