"""Small scenes to write and read; top-level functions, so that work with them could pickle."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np

from framework.scene.types import (
    Boxes,
    Camera,
    FloatArray,
    Lidar,
    Question,
    Radar,
    Scene,
    SceneError,
    Surroundings,
    Trajectory,
)


def full_scene(name: str = "full", seed: int = 0) -> Scene:
    """A scene in which nothing is absent."""
    rng = np.random.default_rng(seed)
    frames = (b"\xff\xd8" + rng.bytes(50), b"\x89PNG" + rng.bytes(70))
    intrinsic = np.array([[50.0, 0.0, 32.0], [0.0, 50.0, 24.0], [0.0, 0.0, 1.0]])
    cameras = tuple(Camera(n, frames, np.array([-0.25, 0.0]), intrinsic, np.eye(4), 64, 48) for n in ("front", "back"))
    values = np.c_[rng.uniform(-20, 20, (3, 3)), rng.uniform(1, 3, (3, 3)), rng.uniform(-3, 3, (3, 3))]
    values[1, 7:] = np.nan
    boxes = Boxes(values, ("car", "bus", "animal"), np.arange(3), np.array([0.1, 0.5, 1.0]), np.array([4, 0, 9]))
    states = np.abs(rng.normal(size=(20, 4)))
    past = np.abs(rng.normal(size=(7, 4))).astype(np.float32)
    past[-1, :3] = 0.0
    agents = rng.normal(size=(3, 20, 3))
    agents[2, 10:] = np.nan
    area = np.array([[0.0, 0.0], [10.0, 0.0], [10.0, 10.0]])
    return Scene(
        id=name,
        kind="made",
        cameras=cameras,
        lidar=Lidar(rng.normal(size=(40, 4)).astype(np.float32), np.eye(4)),
        radar=Radar(rng.normal(size=(5, 5)).astype(np.float32), np.eye(4)),
        perception=dataclasses.replace(boxes, track_ids=None, points=None),
        boxes=boxes,
        history=Trajectory(past),
        future=Trajectory(states),
        surroundings=Surroundings(agents, (area, area + 20.0), area.copy(), 13.9, _stop_lines(rng)),
        command="left",
        questions=(Question("How many cars?", "1", "count"), Question("Où?", "là-bas", "place")),
        caption="A café.",
        thought="Slow down.",
        provenance={"dataset": "made", "timestamp": "315973157959879001", "unmapped": '{"SIGN": 2}'},
    )


def _stop_lines(rng: np.random.Generator) -> FloatArray:
    """Two, `(2, 6)`, each closed from one time to a later one."""
    lines = rng.normal(size=(2, 6))
    lines[:, 4:].sort(axis=1)
    return lines


def same(one: Any, other: Any) -> bool:
    """Whether two values are equal to the bit, arrays' types included."""
    if isinstance(one, np.ndarray):
        alike = isinstance(other, np.ndarray) and one.dtype == other.dtype and one.shape == other.shape
        return alike and one.tobytes() == other.tobytes()
    if dataclasses.is_dataclass(one):
        return type(one) is type(other) and all(
            same(getattr(one, f.name), getattr(other, f.name)) for f in dataclasses.fields(one)
        )
    if isinstance(one, tuple):
        return isinstance(other, tuple) and len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def scenes_of(item: int) -> Iterator[Scene]:
    """Two scenes of an item; the odd items' second has a NaN where there must be none; item 5 cannot be read."""
    if item == 5:
        raise SceneError("item 5: its file is empty; fetch it again")
    yield full_scene(f"scene-{item}-a", seed=2 * item)
    second = full_scene(f"scene-{item}-b", seed=2 * item + 1)
    if item % 2:
        assert second.future is not None
        second.future.states[3, 0] = np.nan
    yield second
