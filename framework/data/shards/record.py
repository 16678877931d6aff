"""The MDS record of a scene, the same for all tasks: six columns that decode to the same bits.

    schema  version of this layout
    id      the scene's id
    kind    its scenario kind
    facts   JSON: names, labels, times, command, questions, caption, thought, the dialogue's turns, provenance
    arrays  safetensors: every array of the scene under its field's name (lidar.points, boxes.values, ...), and the
            dialogue's encoded images and clips
    frames  the cameras' encoded images and clips, one after the other, in the order of `facts`

What a scene lacks is absent from `facts` and `arrays`. Nothing is pickled. Records of earlier versions are migrated
when they are read, one version at a time (`MIGRATIONS`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from framework.data.shards.dialogue import decode_dialogue, encode_dialogue
from framework.scene.types import (
    Boxes,
    Camera,
    FloatArray,
    Lens,
    Lidar,
    Question,
    Radar,
    Scene,
    SceneError,
    Surroundings,
    Trajectory,
)

SCHEMA_VERSION = 3
COLUMNS = {"schema": "int", "id": "str", "kind": "str", "facts": "json", "arrays": "bytes", "frames": "bytes"}


def encode(scene: Scene) -> dict[str, Any]:
    """Returns the record of `scene`, one value per column of `COLUMNS`."""
    arrays: dict[str, FloatArray] = {}
    facts: dict[str, Any] = {
        "command": scene.command,
        "questions": [[q.question, q.answer, q.topic] for q in scene.questions],
        "caption": scene.caption,
        "thought": scene.thought,
        "provenance": scene.provenance,
        "cameras": [_camera_facts(camera, arrays, i) for i, camera in enumerate(scene.cameras)],
        "labels": {},
        "rates": {},
    }
    if scene.lidar is not None:
        arrays |= {"lidar.points": scene.lidar.points, "lidar.extrinsic": scene.lidar.extrinsic}
    if scene.radar is not None:
        arrays |= {"radar.returns": scene.radar.returns, "radar.extrinsic": scene.radar.extrinsic}
    for name in ("perception", "boxes"):
        if getattr(scene, name) is not None:
            facts["labels"] |= _boxes_facts(name, getattr(scene, name), arrays)
    for name in ("history", "future"):
        trajectory: Trajectory | None = getattr(scene, name)
        if trajectory is not None:
            arrays[f"{name}.states"] = trajectory.states
            facts["rates"][name] = float(trajectory.rate_hz)
    if scene.surroundings is not None:
        facts["surroundings"] = _surroundings_facts(scene.surroundings, arrays)
    if scene.dialogue is not None:
        facts["dialogue"] = encode_dialogue(scene.dialogue, arrays)
    return {
        "schema": SCHEMA_VERSION,
        "id": scene.id,
        "kind": scene.kind,
        "facts": facts,
        "arrays": save({name: np.ascontiguousarray(array) for name, array in arrays.items()}),
        "frames": b"".join(part for camera in scene.cameras for part in _encoded(camera)),
    }


def decode(record: dict[str, Any]) -> Scene:
    """The scene of a record of this version or an earlier one. Raises `SceneError` naming the record and the field
    when it is of another version or damaged.
    """
    name = str(record.get("id", "?"))
    version = record.get("schema")
    if version not in (*MIGRATIONS, SCHEMA_VERSION):
        raise SceneError(
            f"record {name}: schema: version {version}, this code reads {min(MIGRATIONS)} to {SCHEMA_VERSION}; "
            "convert the shards again, or read them with the code that wrote them"
        )
    if not isinstance(record.get("facts"), dict):
        raise SceneError(f"record {name}: facts: no object of named facts; verify the shard and write it again")
    try:
        for earlier in range(version, SCHEMA_VERSION):
            record = MIGRATIONS[earlier](record)
        return _assemble(name, record, load(bytes(record["arrays"])))
    except SafetensorError as error:
        raise SceneError(f"record {name}: arrays: {error}; verify the shard and fetch or write it again") from error
    except KeyError as error:
        raise SceneError(f"record {name}: {error} is missing; verify the shard and write it again") from error
    except SceneError:
        raise
    except Exception as error:  # of whatever type the values are that should be others
        raise SceneError(
            f"record {name}: {type(error).__name__}: {error}; verify the shard and write it again"
        ) from error


def _assemble(name: str, record: dict[str, Any], arrays: dict[str, FloatArray]) -> Scene:
    facts = record["facts"]
    surroundings = facts.get("surroundings")
    return Scene(
        id=name,
        kind=record["kind"],
        cameras=_cameras(name, facts["cameras"], arrays, record["frames"]),
        lidar=Lidar(arrays["lidar.points"], arrays["lidar.extrinsic"]) if "lidar.points" in arrays else None,
        radar=Radar(arrays["radar.returns"], arrays["radar.extrinsic"]) if "radar.returns" in arrays else None,
        perception=_boxes("perception", facts, arrays),
        boxes=_boxes("boxes", facts, arrays),
        history=_trajectory("history", facts, arrays),
        future=_trajectory("future", facts, arrays),
        surroundings=None if surroundings is None else _surroundings(surroundings, arrays),
        command=facts["command"],
        questions=tuple(Question(*question) for question in facts["questions"]),
        caption=facts["caption"],
        thought=facts["thought"],
        dialogue=decode_dialogue(facts["dialogue"], arrays) if "dialogue" in facts else None,
        provenance=facts["provenance"],
    )


def _camera_facts(camera: Camera, arrays: dict[str, FloatArray], index: int) -> dict[str, Any]:
    for part in ("times", "intrinsic", "extrinsic"):
        arrays[f"camera{index}.{part}"] = getattr(camera, part)
    if camera.lens is not None:
        arrays[f"camera{index}.lens"] = camera.lens.coefficients
    return {
        "name": camera.name,
        "width": int(camera.width),
        "height": int(camera.height),
        "bytes": [len(part) for part in _encoded(camera)],
        "clip": camera.clip is not None,
        "lens": None if camera.lens is None else camera.lens.model,
    }


def _encoded(camera: Camera) -> tuple[bytes, ...]:
    return camera.frames if camera.clip is None else (camera.clip,)


def _cameras(
    name: str, facts: list[dict[str, Any]], arrays: dict[str, FloatArray], frames: bytes
) -> tuple[Camera, ...]:
    wanted = sum(sum(camera["bytes"]) for camera in facts)
    if wanted != len(frames):
        raise SceneError(
            f"record {name}: frames: {len(frames)} bytes where facts count {wanted}; write the shard again"
        )
    cameras, at = [], 0
    for index, camera in enumerate(facts):
        images = []
        for size in camera["bytes"]:
            images.append(frames[at : at + size])
            at += size
        clip = images.pop() if camera["clip"] else None
        times, intrinsic, extrinsic = (arrays[f"camera{index}.{part}"] for part in ("times", "intrinsic", "extrinsic"))
        size = (camera["width"], camera["height"])
        lens = None if camera["lens"] is None else Lens(camera["lens"], arrays[f"camera{index}.lens"])
        cameras.append(Camera(camera["name"], tuple(images), times, intrinsic, extrinsic, *size, clip, lens))
    return tuple(cameras)


def _boxes_facts(name: str, boxes: Boxes, arrays: dict[str, Any]) -> dict[str, list[str]]:
    """The labels of `boxes` under their field's name; adds what else they hold to `arrays`."""
    for part in ("values", "track_ids", "scores", "points"):
        if getattr(boxes, part) is not None:
            arrays[f"{name}.{part}"] = getattr(boxes, part)
    return {name: list(boxes.labels)}


def _boxes(name: str, facts: dict[str, Any], arrays: dict[str, Any]) -> Boxes | None:
    if f"{name}.values" not in arrays:
        return None
    optional = {part: arrays.get(f"{name}.{part}") for part in ("track_ids", "scores", "points")}
    return Boxes(arrays[f"{name}.values"], tuple(facts["labels"][name]), **optional)


def _trajectory(name: str, facts: dict[str, Any], arrays: dict[str, FloatArray]) -> Trajectory | None:
    states = arrays.get(f"{name}.states")
    return None if states is None else Trajectory(states, facts["rates"][name])


def _surroundings_facts(surroundings: Surroundings, arrays: dict[str, Any]) -> dict[str, Any]:
    arrays["surroundings.agents"] = surroundings.agents
    for index, ring in enumerate(surroundings.drivable):
        arrays[f"surroundings.drivable{index}"] = ring
    if surroundings.route is not None:
        arrays["surroundings.route"] = surroundings.route
    if surroundings.red_lights is not None:
        arrays["surroundings.red_lights"] = surroundings.red_lights
    limit = surroundings.speed_limit
    facts: dict[str, Any] = {
        "drivable": len(surroundings.drivable),
        "speed_limit": None if limit is None else float(limit),
    }
    if surroundings.distant is not None and surroundings.distant_agents is not None:
        arrays["surroundings.distant_agents"] = surroundings.distant_agents
        facts["labels"] = _boxes_facts("surroundings.distant", surroundings.distant, arrays)
    return facts


def _surroundings(facts: dict[str, Any], arrays: dict[str, Any]) -> Surroundings:
    rings = tuple(arrays[f"surroundings.drivable{index}"] for index in range(facts["drivable"]))
    return Surroundings(
        agents=arrays["surroundings.agents"],
        drivable=rings,
        route=arrays.get("surroundings.route"),
        speed_limit=facts["speed_limit"],
        red_lights=arrays.get("surroundings.red_lights"),
        distant=_boxes("surroundings.distant", facts, arrays),
        distant_agents=arrays.get("surroundings.distant_agents"),
    )


def _without_clips(record: dict[str, Any]) -> dict[str, Any]:
    """Migrates version 1, which had single images only."""
    return _cameras_with(record, {"clip": False})


def _without_lenses(record: dict[str, Any]) -> dict[str, Any]:
    """Migrates version 2, in which every camera was a pinhole."""
    return _cameras_with(record, {"lens": None})


def _cameras_with(record: dict[str, Any], facts: dict[str, Any]) -> dict[str, Any]:
    cameras = [{**camera, **facts} for camera in record["facts"]["cameras"]]
    return {**record, "facts": {**record["facts"], "cameras": cameras}}


MIGRATIONS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {1: _without_clips, 2: _without_lenses}
"""Functions that migrate a record of each earlier version to the next."""
