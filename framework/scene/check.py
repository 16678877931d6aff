"""What is wrong with a scene, field by field; used where scenes are written, converted and read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, replace

import numpy as np
import numpy.typing as npt

from framework.scene.check_camera import camera_problems, extrinsic_problems
from framework.scene.check_dialogue import dialogue_problems
from framework.scene.drivable import ring_fault
from framework.scene.text import is_blank, is_unicode
from framework.scene.types import (
    ALL,
    CLASSES,
    NAME_BYTES,
    Boxes,
    FloatArray,
    Scene,
    Surroundings,
    Trajectory,
)

COMMANDS = ("follow", "left", "right", "straight")
FARTHEST = 1000.0
"""Coordinates (m) in the ego frame beyond this are another frame's."""
FASTEST, LEAP = 100.0, 200.0
"""Speeds (m/s) beyond these are no road user's: the second between two places, which localisation makes noisy."""
SMALLEST, LARGEST = 1e-3, 100.0
"""Sizes (m) beyond these are no object's."""
RATES_HZ = (0.1, 1000.0)
"""States per second beyond these are no log's."""
SLOWEST_LIMIT = 0.1
"""Speed limits (m/s) below this are none."""
ID_BYTES = 512
"""Names of scenes longer than this are no names: ledgers and pages repeat them."""
WIDEST_ANGLE = 4 * np.pi
"""Angles (rad) beyond two turns are degrees, or no angles."""
FARTHEST_MAP = 100_000.0
"""Coordinates (m) of maps, of other road users and of points beyond this are another frame's."""
BRIGHTEST = 65535.0
"""Intensities of a LiDAR beyond this, the most of 16 bits, are none."""
STRONGEST = 200.0
"""Radar cross-sections (dB m^2), of either sign, beyond this are another unit's."""
SPEED_NOISE = 1e-3
"""Speeds of plans may be this far (m/s) below zero by rounding."""
PLAN_FAULTS = ("shape", "rate", "length", "not_finite", "absurd")
"""What can be wrong with a predicted trajectory, or with predicted boxes."""


def check_scene(scene: Scene) -> list[str]:
    """All problems of `scene`, each beginning with its field's name and ending with the remedy; empty when it is
    sound."""
    return list(_types(scene)) or list(_problems(scene))


def _types(scene: Scene) -> Iterator[str]:
    """Values of another type than their field's, which a damaged record may have. What follows relies on types."""
    texts: list[tuple[str, object]] = [("id", scene.id), ("kind", scene.kind), ("command", scene.command)]
    texts += [(f, text) for f in ("caption", "thought") if (text := getattr(scene, f)) is not None]
    texts += [(f"cameras[{i}].name", camera.name) for i, camera in enumerate(scene.cameras)]
    texts += [(f"cameras[{i}].lens.model", c.lens.model) for i, c in enumerate(scene.cameras) if c.lens is not None]
    texts += [
        (f"questions[{i}].{f.name}", getattr(q, f.name)) for i, q in enumerate(scene.questions) for f in fields(q)
    ]
    for name, part in _parts(scene).items():
        texts += [(f"{name}.labels", label) for label in getattr(part, "labels", ())]
    for field, value in texts:
        if not isinstance(value, str):
            yield f"{field}: is a {type(value).__name__}, not a text; write the record again"
        elif not is_unicode(value):
            yield f"{field}: holds half of a character (a lone surrogate), which UTF-8 cannot write; mend the text"
    provenance: object = scene.provenance
    if not isinstance(provenance, dict):
        yield f"provenance: is a {type(provenance).__name__}, not texts by name; write the record again"
    else:
        for name, value in provenance.items():
            if not isinstance(name, str) or not isinstance(value, str):
                yield f"provenance: {name!r} is {value!r}, no text; write it as one"
    for index, camera in enumerate(scene.cameras):
        for side, pixels in (("width", camera.width), ("height", camera.height)):
            if isinstance(pixels, bool) or not isinstance(pixels, int | np.integer) or pixels < 1:
                yield f"cameras[{index}].{side}: {pixels!r} is no number of pixels; write the record again"
    numbers: list[tuple[str, object]] = []
    for name in ("history", "future"):
        if (trajectory := getattr(scene, name)) is not None:
            numbers.append((f"{name}.rate_hz", trajectory.rate_hz))
    if scene.surroundings is not None and scene.surroundings.speed_limit is not None:
        numbers.append(("surroundings.speed_limit", scene.surroundings.speed_limit))
    for field, value in numbers:
        if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
            yield f"{field}: is a {type(value).__name__}, not a number; write the record again"
    for field, array in _arrays(scene):
        if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiu":
            yield f"{field}: is no array of numbers; write the record again"


def _arrays(scene: Scene) -> Iterator[tuple[str, object]]:
    """Every array of a scene with its field's name."""
    for index, camera in enumerate(scene.cameras):
        yield from ((f"cameras[{index}].{n}", getattr(camera, n)) for n in ("times", "intrinsic", "extrinsic"))
        if camera.lens is not None:
            yield f"cameras[{index}].lens.coefficients", camera.lens.coefficients
    parts, of_boxes = _parts(scene), ("values", "track_ids", "scores", "points")
    names = {
        "lidar": ("points", "extrinsic"),
        "radar": ("returns", "extrinsic"),
        "perception": of_boxes,
        "boxes": of_boxes,
        "history": ("states",),
        "future": ("states",),
        "surroundings": ("agents", "route", "red_lights", "distant_agents"),
        "surroundings.distant": of_boxes,
    }
    for field, arrays in names.items():
        whole = parts[field]
        for name in arrays if whole is not None else ():
            if (array := getattr(whole, name)) is not None or name in ("values", "agents"):
                yield f"{field}.{name}", array
    if scene.surroundings is not None:
        yield from ((f"surroundings.drivable[{i}]", ring) for i, ring in enumerate(scene.surroundings.drivable))


def _parts(scene: Scene) -> dict[str, object]:
    """What a scene consists of next to its cameras, by field; None where it lacks a part."""
    names = ("lidar", "radar", "perception", "boxes", "history", "future", "surroundings")
    parts: dict[str, object] = {name: getattr(scene, name) for name in names}
    return parts | {"surroundings.distant": None if scene.surroundings is None else scene.surroundings.distant}


def simulation_problems(scene: Scene) -> list[str]:
    """The problems of what a simulation reads: history, future, boxes and surroundings; see `check_scene`."""
    found = [] if scene.boxes is None else list(_boxes(scene.boxes, "boxes"))
    for field, trajectory in (("history", scene.history), ("future", scene.future)):
        found += [] if trajectory is None else _trajectory(trajectory, field)
    return found + ([] if scene.surroundings is None else list(_surroundings(scene.surroundings, scene)))


def are_extents(centres: FloatArray, sizes: FloatArray, farthest: float = FARTHEST) -> npt.NDArray[np.bool_]:
    """Which of boxes `(n,)` have a centre, of `centres` `(n, 3)`, within `farthest` (m), and a size, of `sizes`
    `(n, 3)`, that an object may have. NaN is none."""
    near = (np.abs(centres) <= farthest).all(axis=1)
    return np.asarray(near & (sizes >= SMALLEST).all(axis=1) & (sizes <= LARGEST).all(axis=1))


def plan_fault(plan: Trajectory, steps: int, rate_hz: float) -> str | None:
    """What is wrong with a predicted `plan` that should have `steps` states at `rate_hz`, one of `PLAN_FAULTS`; None
    where it can be driven.

    A plan is absurd when a state, or the way between two, is beyond what any vehicle does within its horizon.
    """
    if np.asarray(plan.states).dtype.kind not in "fiu":
        return "shape"
    states = np.asarray(plan.states, dtype=np.float64)
    if states.ndim != 2 or states.shape[1:] != (4,):
        return "shape"
    if plan.rate_hz != rate_hz:
        return "rate"
    if not len(states) or len(states) != steps:
        return "length"
    if not np.isfinite(states).all():
        return "not_finite"
    beyond = (np.abs(states[:, :2]) > FARTHEST).any() or (np.abs(states[:, 2]) > WIDEST_ANGLE).any()
    beyond |= (states[:, 3] < -SPEED_NOISE).any() or (states[:, 3] > FASTEST).any()
    ways = np.diff(np.concatenate([np.zeros((1, 2)), states[:, :2]]), axis=0)
    return "absurd" if beyond or (np.hypot(*ways.T) * rate_hz > FASTEST).any() else None


def box_fault(boxes: Boxes) -> str | None:
    """What is wrong with predicted `boxes`, one of `PLAN_FAULTS`; None where they can be judged. A velocity may be NaN:
    unknown."""
    count = len(boxes.labels)
    values = np.asarray(boxes.values, dtype=np.float64)
    scores = np.ones(count) if boxes.scores is None else np.asarray(boxes.scores, dtype=np.float64)
    if values.shape != (count, 9) or scores.shape != (count,):
        return "shape"
    if not np.isfinite(values[:, :7]).all() or np.isinf(values[:, 7:]).any() or not np.isfinite(scores).all():
        return "not_finite"
    sizes, away = values[:, 3:6], np.abs(values[:, :3])
    beyond = (sizes < SMALLEST).any() or (sizes > LARGEST).any() or (away > FARTHEST).any()
    beyond |= (np.abs(values[:, 7:]) > FASTEST).any() or (scores < 0).any() or (scores > 1).any()
    return "absurd" if beyond else None


def _problems(scene: Scene) -> Iterator[str]:
    if is_blank(scene.id):
        yield "id: is empty; give the scene a unique name"
    elif not scene.id.isprintable() or len(scene.id.encode()) > ID_BYTES:
        yield f"id: {scene.id[:40]!r} holds control characters, or more than {ID_BYTES} bytes; give a plain name"
    if is_blank(scene.kind):
        yield "kind: is empty; name the scenario kind by which metrics are sliced"
    elif scene.kind == ALL:
        yield f"kind: {ALL!r} names the slice of all scenes; choose another name"
    else:
        yield from _slice_name(scene.kind, "kind")
    if scene.command not in COMMANDS:
        yield f"command: {scene.command!r} is unknown; use one of {', '.join(COMMANDS)}"
    for index, camera in enumerate(scene.cameras):
        yield from camera_problems(camera, f"cameras[{index}]")
        if camera.name in (other.name for other in scene.cameras[:index]):
            yield f"cameras[{index}].name: {camera.name!r} is the name of a camera before; give each a name of its own"
    if scene.lidar is not None:
        yield from _rows(scene.lidar.points, "lidar.points", 4)
        yield from extrinsic_problems(scene.lidar.extrinsic, "lidar.extrinsic")
    if scene.radar is not None:
        yield from _rows(scene.radar.returns, "radar.returns", 5)
        yield from extrinsic_problems(scene.radar.extrinsic, "radar.extrinsic")
    for field, boxes in (("perception", scene.perception), ("boxes", scene.boxes)):
        if boxes is not None:
            yield from _boxes(boxes, field)
    for field, trajectory in (("history", scene.history), ("future", scene.future)):
        if trajectory is not None:
            yield from _trajectory(trajectory, field)
    past = None if scene.history is None else scene.history.states
    if past is not None and past.shape[1:] == (4,) and len(past) and not np.allclose(past[-1, :3], 0.0, atol=1e-3):
        yield "history: its last state is not the origin; express poses in the ego frame at the current time"
    if scene.surroundings is not None:
        yield from _surroundings(scene.surroundings, scene)
    for name in ("caption", "thought"):
        if getattr(scene, name) is not None and is_blank(getattr(scene, name)):
            yield f"{name}: is empty; use None where there is none"
    asked: dict[str, int] = {}
    for index, question in enumerate(scene.questions):
        if (first := asked.setdefault(question.question, index)) != index:
            yield f"questions[{index}].question: is that of questions[{first}]; ask each once, or reword it"
        yield from _slice_name(question.topic, f"questions[{index}].topic")
        for item in fields(question):
            if is_blank(getattr(question, item.name)):
                yield f"questions[{index}].{item.name}: is empty; fill it or drop the question"
            elif "\n" in getattr(question, item.name):
                yield f"questions[{index}].{item.name}: has several lines; questions and answers are put one a line"
    if scene.thought is not None and "\n" in scene.thought:
        yield "thought: has several lines; the action follows it on the next one"
    if scene.dialogue is not None:
        yield from dialogue_problems(scene.dialogue)


def _slice_name(name: str, field: str) -> Iterator[str]:
    """What is wrong with a name by which metrics are sliced."""
    if len(name.encode()) > NAME_BYTES:
        yield f"{field}: {name!r} is longer than {NAME_BYTES} bytes, more than metrics are sliced by; shorten it"
    elif not name.isprintable():
        yield f"{field}: {name!r} holds control characters; give a name that a table can show"


def _rows(rows: FloatArray, field: str, channels: int) -> Iterator[str]:
    if rows.ndim != 2 or rows.shape[1] != channels:
        yield f"{field}: shape {rows.shape}, not (n, {channels}); see the channels in framework.scene.types"
    elif not np.isfinite(rows).all():
        yield f"{field}: {int((~np.isfinite(rows)).any(axis=1).sum())} rows have NaN or infinite values; drop them"
    elif not _is_bounded(rows[:, :3]):
        yield f"{field}: a point is farther than {FARTHEST_MAP:.0f} m; check the unit, or drop the row"
    elif channels == 4 and (np.abs(rows[:, 3]) > BRIGHTEST).any():
        yield f"{field}: an intensity is beyond {BRIGHTEST:.0f}; scale intensities to 0 to 1"
    elif channels == 5 and ((np.abs(rows[:, 3]) > FASTEST).any() or (np.abs(rows[:, 4]) > STRONGEST).any()):
        yield f"{field}: a speed is beyond {FASTEST:.0f} m/s, or a cross-section beyond {STRONGEST:.0f} dB; check units"


def _boxes(boxes: Boxes, field: str) -> Iterator[str]:
    count = len(boxes.labels)
    if boxes.values.shape != (count, 9):
        yield f"{field}.values: shape {boxes.values.shape} for {count} labels; give (n, 9) values"
        return
    for name in ("track_ids", "scores", "points"):
        column = getattr(boxes, name)
        if column is not None and np.shape(column) != (count,):
            yield f"{field}.{name}: shape {np.shape(column)} for {count} labels; give one per box or None"
        elif column is not None and name != "scores" and not (np.isfinite(column) & (np.round(column) == column)).all():
            yield f"{field}.{name}: holds what is no whole number; give whole numbers, or None where one is unknown"
    if boxes.points is not None and (boxes.points < 0).any():
        yield f"{field}.points: a count is negative; give counts, or None where one is unknown"
    unknown = sorted(set(boxes.labels) - set(CLASSES))
    if unknown:
        yield f"{field}.labels: unknown {', '.join(map(repr, unknown))}; map them to {', '.join(CLASSES)}"
    if not np.isfinite(boxes.values[:, :7]).all():
        yield f"{field}.values: a pose or size is NaN or infinite; drop the box"
    elif (boxes.values[:, 3:6] < SMALLEST).any():
        yield f"{field}.values: a size is not positive; drop the box or restore length, width and height"
    elif (np.abs(boxes.values[:, :3]) > FARTHEST).any():
        yield f"{field}.values: a centre is farther than {FARTHEST:.0f} m; express boxes in the ego frame"
    elif (boxes.values[:, 3:6] > LARGEST).any():
        yield f"{field}.values: a size is larger than {LARGEST:.0f} m; check its unit or drop the box"
    if (np.abs(boxes.values[:, 6]) > WIDEST_ANGLE).any():
        yield f"{field}.values: a yaw is beyond two turns; check that it is in radians"
    if np.isinf(boxes.values[:, 7:9]).any():
        yield f"{field}.values: a velocity is infinite; use NaN where it is unknown"
    elif (np.abs(boxes.values[:, 7:9]) > FASTEST).any():
        yield f"{field}.values: a velocity is beyond {FASTEST:.0f} m/s; check its unit, or use NaN where it is unknown"
    if boxes.scores is not None and not ((boxes.scores >= 0.0) & (boxes.scores <= 1.0)).all():
        yield f"{field}.scores: must lie in 0 to 1; normalise them"


def _trajectory(trajectory: Trajectory, field: str) -> Iterator[str]:
    states = trajectory.states
    if not RATES_HZ[0] <= trajectory.rate_hz <= RATES_HZ[1]:
        low, high = RATES_HZ
        yield f"{field}.rate_hz: {trajectory.rate_hz} is not in {low:g} to {high:g}; give states per second"
    if states.ndim != 2 or states.shape[1] != 4 or not len(states):
        yield f"{field}.states: shape {states.shape}, not (time, 4); give x, y, heading, speed"
    elif not np.isfinite(states).all():
        steps = np.flatnonzero(~np.isfinite(states).all(axis=1)).tolist()
        yield f"{field}.states: NaN or infinite at steps {steps}; interpolate the log or drop the scene"
    else:
        if (states[:, 3] < 0.0).any() or (states[:, 3] > FASTEST).any():
            yield f"{field}.states: a speed is not in 0 to {FASTEST:.0f} m/s; check its unit and sign"
        if (np.abs(states[:, :2]) > FARTHEST).any():
            yield f"{field}.states: a position is farther than {FARTHEST:.0f} m; express poses in the ego frame"
        elif (_ways(states[:, :2], from_here=field == "future") * trajectory.rate_hz > LEAP).any():
            yield f"{field}.states: a position leaps, faster than {LEAP:.0f} m/s; mend the log or drop the scene"
        if (np.abs(states[:, 2]) > np.pi + 1e-6).any():
            yield f"{field}.states: a heading is outside (-pi, pi]; wrap it and check that it is in radians"


def _ways(places: FloatArray, from_here: bool) -> FloatArray:
    """Distances (m) between neighbouring places `(t, 2)`, with the origin before the first where they go on from it."""
    return np.asarray(np.hypot(*np.diff(np.concatenate([np.zeros((int(from_here), 2)), places]), axis=0).T))


def _surroundings(surroundings: Surroundings, scene: Scene) -> Iterator[str]:
    agents = surroundings.agents
    boxes = 0 if scene.boxes is None else len(scene.boxes)
    if agents.ndim != 3 or agents.shape[2] != 3:
        yield f"surroundings.agents: shape {agents.shape}, not (n, time, 3); give x, y, heading"
    else:
        if len(agents) != boxes:
            yield f"surroundings.agents: {len(agents)} agents for {boxes} boxes; give one future per box"
        if scene.future is not None and len(agents) and agents.shape[1] != len(scene.future.states):
            yield f"surroundings.agents: {agents.shape[1]} steps, the future {len(scene.future.states)}; resample them"
        if np.isinf(agents).any() or (np.abs(agents) > FARTHEST_MAP).any():
            yield "surroundings.agents: a pose is infinite or absurd; use NaN where an agent is gone"
    distant, poses = surroundings.distant, surroundings.distant_agents
    if (distant is None) != (poses is None):
        yield "surroundings.distant: boxes without futures, or futures without boxes; give distant and distant_agents"
    elif distant is not None and poses is not None:
        yield from _boxes(_placed(distant), "surroundings.distant")
        if poses.shape != (len(distant), agents.shape[1] if agents.ndim == 3 else 0, 3) or np.isinf(poses).any():
            yield f"surroundings.distant_agents: shape {poses.shape} or infinite; give one future per distant box"
    for index, polygon in enumerate(surroundings.drivable):
        if polygon.ndim != 2 or polygon.shape[1] != 2 or len(polygon) < 3 or not _is_bounded(polygon):
            yield f"surroundings.drivable[{index}]: is no polygon of at least three finite points (k, 2); drop it"
        elif (fault := ring_fault(polygon)) is not None:
            yield f"surroundings.drivable[{index}]: {fault}; drop it, or give its parts as polygons of their own"
    route = surroundings.route
    if route is not None and (route.ndim != 2 or route.shape[1] != 2 or not _is_bounded(route)):
        yield f"surroundings.route: shape {route.shape} or values are no finite (k, 2) polyline; restore it or use None"
    if surroundings.speed_limit is not None and not SLOWEST_LIMIT <= surroundings.speed_limit < FASTEST:
        yield f"surroundings.speed_limit: {surroundings.speed_limit} m/s is impossible; check its unit"
    lights = surroundings.red_lights
    if lights is not None and (lights.ndim != 2 or lights.shape[1] != 6 or not _are_lines(lights)):
        yield (
            f"surroundings.red_lights: shape {lights.shape}, NaN, a line's end that is nowhere or a time that ends "
            "before it begins; give (n, 6): a line's ends, from when, until when"
        )


def _placed(distant: Boxes) -> Boxes:
    """The boxes of the distant, those who are not there yet at the origin."""
    values = np.array(distant.values, dtype=np.float64)
    if values.ndim == 2 and values.shape[1] == 9:
        values[np.isnan(values[:, :2]).all(axis=1), :2] = 0.0
    return replace(distant, values=values)


def _are_lines(lights: FloatArray) -> bool:
    """Whether the ends of stop lines are places, and their times in order; these may be infinite."""
    return _is_bounded(lights[:, :4]) and bool((lights[:, 4] <= lights[:, 5]).all())


def _is_bounded(points: FloatArray) -> bool:
    return bool((np.abs(points) <= FARTHEST_MAP).all())
