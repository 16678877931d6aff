"""Scenes as JSON: what a request to drive gives, checked field by field, and what is answered."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from framework.data.pipeline import DataPipeline
from framework.scene.check import COMMANDS, check_scene
from framework.scene.frames import wrap_angle
from framework.scene.image import read_image
from framework.scene.types import (
    CLASSES,
    RATE_HZ,
    Boxes,
    Camera,
    FloatArray,
    Lidar,
    Radar,
    Scene,
    SceneError,
    Surroundings,
    Trajectory,
)
from framework.serving.fields import FieldError, decoded, items, mapping, number, numbers, text

SENSORS = {"lidar": "lidar", "radar": "radar", "boxes": "perception", "ego": "history", "calibration": "cameras"}
"""The request's field of each sensor, by the name of its encoder."""
KEYS = ("id", "command", "route", "history", "cameras", "lidar", "radar", "perception", "absent", "tasks")
"""Fields of a request to drive."""
MOST_CAMERAS = 16
TURN_AFTER_M = 30.0
"""Length (m) of a route from whose turn the command is taken where the request gives none."""
TURN_RAD = 0.5
"""A larger turn within it is a turn to the left or right."""
_FIELD = re.compile(r"^([\w.\[\]]+)(?: \([^)]*\))?(\.[\w\[\]]+)?: (.*)$", re.DOTALL)


def parse_scene(request: Mapping[str, Any], data: DataPipeline) -> Scene:
    """The scene of a request to drive.

    Raises `FieldError` for a field that cannot be used, and for a sensor that the model reads and the request neither
    gives nor names in `absent`.
    """
    mapping(request, "", KEYS)
    route = None if request.get("route") is None else _route(request["route"])
    command = text(request["command"], "command") if request.get("command") is not None else command_of_route(route)
    scene = Scene(
        id=text(request.get("id", "request"), "id", 200) or "request",
        kind="request",
        command=command,
        cameras=tuple(_camera(each, f"cameras[{i}]") for i, each in enumerate(_listed(request, "cameras"))),
        history=None if request.get("history") is None else _history(request["history"]),
        lidar=None if request.get("lidar") is None else Lidar(*_rows(request["lidar"], "lidar", "points", 4)),
        radar=None if request.get("radar") is None else Radar(*_rows(request["radar"], "radar", "returns", 5)),
        perception=None if request.get("perception") is None else _boxes(request["perception"], "perception"),
        surroundings=None if route is None else Surroundings(np.zeros((0, 0, 3)), route=route),
    )
    if command not in COMMANDS:
        raise FieldError("command", f"{command!r} is unknown; use one of {', '.join(COMMANDS)}")
    refuse_unsound(scene)
    _refuse_missing(request, scene, data)
    return scene


def request_of(scene: Scene, cameras: Sequence[str] | None = None) -> dict[str, Any]:
    """The request that gives what a model sees of `scene`, as a client writes it; `cameras` are those to send, None all
    of them.
    """
    parts = []
    if scene.lidar is not None:
        parts.append(("lidar", "points", scene.lidar.points, scene.lidar.extrinsic))
    if scene.radar is not None:
        parts.append(("radar", "returns", scene.radar.returns, scene.radar.extrinsic))
    request: dict[str, Any] = {"id": scene.id, "command": scene.command}
    if scene.history is not None:
        request["history"] = {"states": scene.history.states.tolist(), "rate_hz": scene.history.rate_hz}
    request["cameras"] = [
        {"name": camera.name, "image": base64.b64encode(camera.frames[-1]).decode(),
         "intrinsic": camera.intrinsic.tolist(), "extrinsic": camera.extrinsic.tolist()}
        for camera in scene.cameras if camera.frames and (cameras is None or camera.name in cameras)
    ]  # fmt: skip
    for name, key, rows, extrinsic in parts:
        encoded = base64.b64encode(np.asarray(rows, "<f4").tobytes()).decode()
        request[name] = {key: encoded, "extrinsic": extrinsic.tolist()}
    if scene.perception is not None:
        boxes = scene.perception
        scores = None if boxes.scores is None else boxes.scores.tolist()
        request["perception"] = {"values": _or_null(boxes.values), "labels": list(boxes.labels), "scores": scores}
    return request


def refuse_unsound(scene: Scene) -> None:
    """Raise `FieldError` for the first problem of `scene`."""
    if problems := check_scene(scene):
        match = _FIELD.match(problems[0])
        field = f"{match[1]}{match[2] or ''}" if match else ""
        field = field.replace(".frames[0]", ".image").removeprefix("surroundings.")  # the request's own names
        raise FieldError(field, match[3] if match else problems[0])


def field_of(error: SceneError, scene: Scene) -> FieldError:
    """What the renderer refuses, as the fault of a field. Of a scene, only cameras have any number of tokens."""
    message = re.sub(r"^scene [^:]*: ", "", str(error))
    of_cameras = "camera" in message or "tokens" in message
    return FieldError("messages" if scene.dialogue is not None else "cameras" if of_cameras else "", message)


def _or_null(values: FloatArray) -> list[Any]:
    """Numbers as JSON has them: what is unknown, NaN, is null."""
    known = values.astype(object)
    known[np.isnan(values)] = None
    listed: list[Any] = known.tolist()
    return listed


def _listed(request: Mapping[str, Any], key: str) -> Sequence[Any]:
    return items(request[key], key, MOST_CAMERAS) if request.get(key) is not None else []


def _refuse_missing(request: Mapping[str, Any], scene: Scene, data: DataPipeline) -> None:
    """Refuse a request without a sensor that the model reads, and cameras that it does not know."""
    listed = request["absent"] if request.get("absent") is not None else []
    absent = [text(each, f"absent[{i}]") for i, each in enumerate(items(listed, "absent", 16))]
    if scene.history is None:
        raise FieldError("history", "is missing; a plan starts from the current speed: give the states up to now")
    wanted = {SENSORS.get(name, name) for name in data.sensors} | ({"cameras"} if data.cameras != [] else set())
    if unknown := sorted(set(absent) - wanted - set(SENSORS.values())):
        names = ", ".join(sorted(wanted))
        raise FieldError("absent", f"{unknown[0]!r} is no sensor; the model reads {names}")
    for field in sorted(wanted - set(absent) - {"history"}):
        if getattr(scene, field, None) in (None, ()):
            known = ", ".join(data.cameras) if field == "cameras" and data.cameras else field
            raise FieldError(field, f"is missing; the model reads {known}: give it, or name it in `absent`")
    for index, camera in enumerate(scene.cameras):
        if data.cameras is not None and camera.name not in data.cameras:
            names = ", ".join(data.cameras)
            raise FieldError(f"cameras[{index}].name", f"{camera.name!r} is unknown; the model sees {names}")


def _history(value: Any) -> Trajectory:
    given = mapping(value, "history", ("states", "rate_hz"))
    states = numbers(given.get("states"), "history.states")
    return Trajectory(states, number(given.get("rate_hz", RATE_HZ), "history.rate_hz"))


def _route(value: Any) -> FloatArray:
    route = numbers(value, "route")
    if route.ndim != 2 or route.shape[1] != 2 or len(route) < 2:
        raise FieldError("route", f"shape {route.shape}, not (k, 2) with k > 1; give x, y in the ego frame")
    return route


def command_of_route(route: FloatArray | None) -> str:
    """The navigator's instruction that a route stands for: its turn within the next metres."""
    if route is None or not np.isfinite(route).all():
        return "follow"
    steps = np.diff(route, axis=0)
    steps = steps[steps.any(axis=1)]  # a point given twice has no heading
    if not len(steps):
        return "follow"
    ahead = np.concatenate([[0.0], np.cumsum(np.hypot(*steps.T))])[:-1] <= TURN_AFTER_M
    headings = np.arctan2(steps[:, 1], steps[:, 0])
    turn = float(wrap_angle(headings[ahead][-1] - headings[0]))
    return "left" if turn > TURN_RAD else "right" if turn < -TURN_RAD else "follow"


def _camera(value: Any, field: str) -> Camera:
    given = mapping(value, field, ("name", "image", "intrinsic", "extrinsic"))
    encoded = decoded(text(given.get("image"), f"{field}.image", 1 << 26), f"{field}.image")
    try:
        image = read_image(encoded)
    except SceneError as error:
        raise FieldError(f"{field}.image", str(error)) from error
    return Camera(
        name=text(given.get("name"), f"{field}.name", 64),
        frames=(encoded,),
        times=np.zeros(1),
        intrinsic=numbers(given.get("intrinsic"), f"{field}.intrinsic"),
        extrinsic=numbers(given.get("extrinsic"), f"{field}.extrinsic"),
        width=image.width,
        height=image.height,
    )


def _rows(value: Any, field: str, key: str, columns: int) -> tuple[FloatArray, FloatArray]:
    given = mapping(value, field, (key, "extrinsic"))
    rows = numbers(given.get(key), f"{field}.{key}", columns).astype(np.float32)
    extrinsic = given.get("extrinsic")
    return rows, np.eye(4) if extrinsic is None else numbers(extrinsic, f"{field}.extrinsic")


def _boxes(value: Any, field: str) -> Boxes:
    given = mapping(value, field, ("values", "labels", "scores"))
    listed = items(given.get("labels"), f"{field}.labels", 1000)
    labels = [text(each, f"{field}.labels[{i}]") for i, each in enumerate(listed)]
    if unknown := [label for label in labels if label not in CLASSES]:
        raise FieldError(f"{field}.labels", f"{unknown[0]!r} is unknown; there are {', '.join(CLASSES)}")
    scores = None if given.get("scores") is None else numbers(given["scores"], f"{field}.scores")
    return Boxes(numbers(given.get("values"), f"{field}.values", 9), tuple(labels), scores=scores)
