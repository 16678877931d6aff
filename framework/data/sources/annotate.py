"""Commands, questions and captions of recordings, made from their annotations in the built-in world's wording."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TypedDict

import numpy as np

from framework.scene.types import Boxes, Question, Trajectory

NEAR_M = 50.0
"""Distance (m) within which objects are mentioned."""
TURN_RAD = 0.5
"""Heading change over the horizon that makes a future a turn."""
VEHICLES = frozenset({"car", "truck", "bus", "trailer", "construction_vehicle", "motorcycle", "bicycle"})


class Annotations(TypedDict):
    """What a scene's annotations say in words; see `Scene` for each."""

    command: str
    questions: tuple[Question, ...]
    caption: str | None


def annotated(boxes: Boxes | None, future: Trajectory | None) -> Annotations:
    """Returns the words of a scene whose known boxes are `boxes`, and whose ego drives on as `future`."""
    return Annotations(
        command="follow" if future is None else command_of(future),
        questions=() if boxes is None else questions_of(boxes),
        caption=None if boxes is None else caption_of(boxes),
    )


def command_of(future: Trajectory) -> str:
    """Returns the navigation command that a future follows: follow, left or right."""
    turned = float(np.unwrap(np.r_[0.0, future.states[:, 2]])[-1])
    if abs(turned) < TURN_RAD:
        return "follow"
    return "left" if turned > 0 else "right"


def questions_of(boxes: Boxes) -> tuple[Question, ...]:
    """Returns questions about the ego's surroundings: how many vehicles, what is nearest, where and how far."""
    distance = np.hypot(boxes.values[:, 0], boxes.values[:, 1])
    vehicles = sum(label in VEHICLES and d < NEAR_M for label, d in zip(boxes.labels, distance, strict=True))
    questions = [Question("How many vehicles are within 50 m?", str(vehicles), "count")]
    if len(boxes) and distance.min() < NEAR_M:
        nearest = int(np.argmin(distance))
        side = "left" if boxes.values[nearest, 1] > 0.0 else "right"
        fives = str(5 * round(float(distance[nearest]) / 5.0))
        questions += [
            Question("What is the nearest object?", _spoken(boxes.labels[nearest]), "nearest"),
            Question("Is the nearest object to the left or to the right?", side, "side"),
            Question("How far is the nearest object, to the nearest 5 m?", fives, "distance"),
        ]
    return tuple(questions)


def caption_of(boxes: Boxes) -> str:
    """Returns a sentence that counts the objects in sight by class, the most frequent first."""
    near = np.hypot(boxes.values[:, 0], boxes.values[:, 1]) < NEAR_M
    counts = Counter(label for label, seen in zip(boxes.labels, near, strict=True) if seen)
    listed = ", ".join(f"{count} {_spoken(label, count)}" for label, count in counts.most_common())
    return f"Around the ego: {listed}." if listed else "Around the ego: nobody."


def unmapped(names: Sequence[str]) -> dict[str, str]:
    """Returns the provenance entry that counts annotations of classes missing from `CLASSES`; empty without any."""
    return {"unmapped": json.dumps(dict(sorted(Counter(names).items())))} if names else {}


def dropped(
    boxes: Boxes | None, sensors: Sequence[str] = (), others: Mapping[str, int] | None = None
) -> dict[str, str]:
    """Returns the provenance entry that counts what else a scene leaves out: `sensors` that were not read, boxes
    that nobody is asked about, since no sensor has a point in them, and `others` by name. Empty without any.
    """
    counts = Counter(f"sensor {name}" for name in sensors)
    counts.update(others or {})
    hidden = 0 if boxes is None else len(boxes) - len(boxes.visible())
    if hidden:
        counts["box without a point"] = hidden
    return {"dropped": json.dumps(dict(sorted(counts.items())))} if counts else {}


def _spoken(label: str, count: int = 1) -> str:
    """Returns a class in words, in the plural unless `count` is 1."""
    ending = "" if count == 1 else "es" if label.endswith("s") else "s"
    return label.replace("_", " ") + ending
