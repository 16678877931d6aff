"""Scenes made by hand, whose measures can be worked out on paper."""

from __future__ import annotations

from typing import Any

import numpy as np

from framework.scene.types import Boxes, FloatArray, Question, Scene, Surroundings, Trajectory


def straight(speed: float = 8.0, steps: int = 20, rate: float = 4.0) -> FloatArray:
    """States along the x axis at a constant speed."""
    states = np.zeros((steps, 4))
    states[:, 0], states[:, 3] = speed * np.arange(1, steps + 1) / rate, speed
    return states


def make_scene(**fields: Any) -> Scene:
    """A car ahead, standing at 60 m, on a straight road 8 m wide; the ego drives at 8 m/s."""
    history = np.zeros((5, 4))
    history[:, 0], history[:, 3] = 2.0 * np.arange(-4, 1), 8.0
    boxes = Boxes(np.array([[60.0, 0.0, 0.8, 4.5, 1.8, 1.6, 0.0, 0.0, 0.0]]), ("car",), points=np.array([12]))
    agents = np.tile([60.0, 0.0, 0.0], (1, 20, 1))
    road = np.array([[-50.0, -4.0], [150.0, -4.0], [150.0, 4.0], [-50.0, 4.0]])
    defaults: dict[str, Any] = {
        "id": "hand-1",
        "kind": "straight",
        "history": Trajectory(history),
        "future": Trajectory(straight()),
        "boxes": boxes,
        "surroundings": Surroundings(agents, (road,)),
        "questions": (Question("How many cars are ahead?", "1", "count"),),
    }
    return Scene(**(defaults | fields))
