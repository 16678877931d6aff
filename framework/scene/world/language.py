"""What can be said about a scene of the built-in world: questions with answers, a caption and a chain of thought,
all from the truth."""

from __future__ import annotations

import numpy as np
import shapely

from framework.scene.types import Boxes, FloatArray, Question, Surroundings, Trajectory
from framework.scene.world.actors import VEHICLES

NEAR_LANE, NEAR_ROAD = 1.4, 2.5
"""Distances (m): from the route's centreline to be in the ego's lane, and from the drivable surface to be near the
road."""

_WHY = {
    "open road": "The road ahead is clear",
    "curve": "The road bends ahead",
    "obstacle": "The lane ahead is blocked",
    "flagger": "A flagger stops the traffic",
    "lead vehicle": "The vehicle ahead is close or slower",
    "crossing traffic": "Another vehicle crosses the way",
    "pedestrian": "A pedestrian is crossing",
    "animal": "An animal is on the road",
}
_WHAT = {
    "stop": "so I brake to a stop",
    "slow down": "so I slow down",
    "keep speed": "so I keep my speed",
    "speed up": "so I speed up",
    "wait": "so I wait",
    "pass left": "so I move to the left around it",
    "turn left": "and I turn left",
    "turn right": "and I turn right",
}


def manoeuvre(future: Trajectory, speed: float, command: str, detour: float) -> str:
    """What the ego does, in one of a few words, from its `future`, its `speed` now (m/s) and the `detour` it makes
    (m to the left)."""
    states = future.states
    if states[:, 3].min() < 0.3:
        return "wait" if speed < 0.5 else "stop"
    if command in ("left", "right") and np.abs(states[-1, 2]) > 0.6:
        return f"turn {command}"
    if detour > 0.6:
        return "pass left"
    change = float(states[-1, 3]) - speed
    if min(change, float(states[:, 3].min()) - speed) < -1.5:
        return "slow down"
    return "speed up" if change > 1.5 else "keep speed"


def cause(controls: FloatArray, causes: tuple[str, ...], did: str) -> str:
    """What the manoeuvre is due to: what asked for the hardest braking of the next three seconds."""
    if did == "pass left":
        return "obstacle"
    hardest = int(np.argmin(controls[:12, 0]))
    return "open road" if did in ("speed up", "keep speed") else causes[hardest]


def think(did: str, why: str) -> str:
    """The chain of thought: one sentence that names the cause and the manoeuvre."""
    reason = _WHY.get(why, f"There is a {why.replace('_', ' ')} on the road")
    if did.startswith("turn") and why == "open road":
        reason = "The crossing is clear"
    return f"{reason}, {_WHAT[did]}."


def describe(boxes: Boxes, did: str, speed: float) -> str:
    """A caption: what is around and what the ego is doing."""
    counts = {label: boxes.labels.count(label) for label in dict.fromkeys(boxes.labels)}
    seen = ", ".join(f"{count} {_plural(label, count)}" for label, count in counts.items()) or "nobody"
    return f"Around the ego at {round(speed)} m/s: {seen}. Next: {did}."


def ask(boxes: Boxes, surroundings: Surroundings, speed: float, did: str, why: str) -> tuple[Question, ...]:
    """Questions with short answers about what is around the ego and what it should do."""
    offset = _offsets(boxes, surroundings)
    ahead = boxes.values[:, 0] > 0.0
    distance = np.hypot(boxes.values[:, 0], boxes.values[:, 1])
    vehicle = np.array([label in VEHICLES for label in boxes.labels], dtype=bool)
    walker = np.array([label == "pedestrian" for label in boxes.labels], dtype=bool)
    in_lane = vehicle & ahead & (np.abs(offset) < NEAR_LANE)
    near_road = walker & ahead & (_from_road(boxes, surroundings) < NEAR_ROAD)
    questions = [
        Question("How many vehicles are within 50 m?", str(int(vehicle.sum())), "count"),
        Question("Is a vehicle ahead in your lane?", _yes(in_lane.any()), "lead"),
        Question("Is a pedestrian on or near the road ahead?", _yes(near_road.any()), "pedestrian"),
        Question("What should the ego do next?", did, "manoeuvre"),
        Question("What decides what the ego does next?", why.replace("_", " "), "reason"),
    ]
    if len(boxes):
        nearest = int(np.argmin(distance))
        side = "left" if boxes.values[nearest, 1] > 0.0 else "right"
        fives = str(5 * round(float(distance[nearest]) / 5.0))
        questions += [
            Question("What is the nearest object?", boxes.labels[nearest].replace("_", " "), "nearest"),
            Question("Is the nearest object to the left or to the right?", side, "side"),
            Question("How far is the nearest object, to the nearest 5 m?", fives, "distance"),
        ]
    if in_lane.any():
        lead = int(np.flatnonzero(in_lane)[np.argmin(distance[in_lane])])
        difference = float(np.hypot(*boxes.values[lead, 7:9])) - speed
        pace = "slower" if difference < -0.5 else "faster" if difference > 0.5 else "same"
        questions.append(Question("Is the vehicle ahead slower, faster or at the same speed?", pace, "closing"))
    return tuple(questions)


def _offsets(boxes: Boxes, surroundings: Surroundings) -> FloatArray:
    """Distances `(n,)` (m) of boxes from the route's centreline."""
    route = surroundings.route
    if route is None or not len(boxes):
        return np.full(len(boxes), np.inf)
    gaps: FloatArray = np.linalg.norm(boxes.values[:, None, :2] - route, axis=-1).min(axis=1)
    return gaps


def _from_road(boxes: Boxes, surroundings: Surroundings) -> FloatArray:
    """Distances `(n,)` (m) of boxes' centres from the drivable surface; 0 on it."""
    centres = shapely.points(boxes.values[:, :2])
    surfaces = [shapely.distance(shapely.polygons(polygon), centres) for polygon in surroundings.drivable]
    return np.min([np.full(len(boxes), np.inf), *surfaces], axis=0)


def _yes(value: object) -> str:
    return "yes" if value else "no"


def _plural(label: str, count: int) -> str:
    name = label.replace("_", " ")
    return name if count == 1 or name == "debris" else "buses" if name == "bus" else f"{name}s"
