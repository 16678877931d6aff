"""Scenes made by hand, in which what must happen can be worked out on paper."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from framework.scene.kinematics import unicycle_rollout
from framework.scene.types import Boxes, FloatArray, Scene, Surroundings, Trajectory

STEPS, RATE = 20, 4.0
SIZES = {"car": (4.5, 1.8, 1.6), "pedestrian": (0.6, 0.6, 1.8), "traffic_cone": (0.4, 0.4, 0.8)}
ROAD = np.array([[-50.0, -5.0], [200.0, -5.0], [200.0, 5.0], [-50.0, 5.0]])


def driven(speed: float, acceleration: float = 0.0, curvature: float = 0.0, steps: int = STEPS) -> FloatArray:
    """States `(steps, 4)` from the origin, under constant controls."""
    controls = np.tile([acceleration, curvature], (steps, 1))
    states: FloatArray = unicycle_rollout(np.array([0.0, 0.0, 0.0, speed]), controls, 1.0 / RATE)
    return states


def trajectory(*args: float, **kwargs: float) -> Trajectory:
    return Trajectory(driven(*args, **kwargs), RATE)  # type: ignore[arg-type]


Agent = tuple[str, tuple[float, float, float], float]
"""A label, x, y and heading now, and a speed that is kept."""


def moving(label: str, x: float, y: float, heading: float = 0.0, speed: float = 0.0) -> Agent:
    return label, (x, y, heading), speed


def make_scene(
    agents: Sequence[Agent] = (),
    speed: float = 8.0,
    logs: Sequence[FloatArray] | None = None,
    name: str = "made",
    kind: str = "straight",
    **fields: Any,
) -> Scene:
    """A straight road along x, 10 m wide, on which the ego drives at `speed` and the expert keeps it; `logs` `(20, 3)`
    are the agents' futures where their speeds are not kept.
    """
    past = np.zeros((7, 4))
    past[:, 0], past[:, 3] = speed * np.arange(-6, 1) / RATE, speed
    rows, futures = np.zeros((len(agents), 9)), np.zeros((len(agents), STEPS, 3))
    for row, future, (label, (x, y, heading), pace) in zip(rows, futures, agents, strict=True):
        velocity = pace * np.array([np.cos(heading), np.sin(heading)])
        row[:] = [x, y, SIZES[label][2] / 2, *SIZES[label], heading, *velocity]
        future[:, :2] = np.array([x, y]) + velocity * np.arange(1, STEPS + 1)[:, None] / RATE
        future[:, 2] = heading
    around: dict[str, Any] = {
        "agents": futures if logs is None else np.array(logs),
        "drivable": (ROAD,),
        "route": np.array([[-50.0, 0.0], [200.0, 0.0]]),
        "speed_limit": 10.0,
    }
    around |= {key: fields.pop(key) for key in list(fields) if key in (*around, "red_lights")}
    defaults: dict[str, Any] = {
        "history": Trajectory(past, RATE),
        "future": trajectory(speed),
        "boxes": Boxes(rows, tuple(label for label, _, _ in agents), track_ids=np.arange(len(agents))),
        "surroundings": Surroundings(**around),
    }
    return Scene(id=name, kind=kind, **(defaults | fields))
