"""KITTI's labels: text files of the object and the tracking benchmark, and the tracklets of raw drives in XML.

A row of the benchmarks is: type, truncated, occluded, alpha, the box in the image (left, top, right, bottom), height,
width, length, x, y, z of the *bottom's* centre in the rectified frame of camera 0 (x right, y down, z forward), and
`rotation_y` about the axis that points down; rows of tracking begin with the frame and the track. Regions of the type
`DontCare` have filler numbers. A tracklet has one size and a pose for each frame, x, y, z of the bottom's centre in the
Velodyne's frame and `rz` about z.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import numpy.typing as npt

from framework.data.sources.kitti.calibration import AGAIN, VELODYNE
from framework.data.sources.tracks import once_a_time
from framework.scene.check import FARTHEST, LARGEST, SMALLEST
from framework.scene.frames import apply, points_in_box
from framework.scene.types import CLASSES, Boxes, FloatArray, SceneError

LICENCE = "CC BY-NC-SA 3.0"
DONT_CARE = "DontCare"
"""The type of regions without annotations."""
LABELS = {
    "Pedestrian": "pedestrian",
    "Person": "pedestrian",
    "Person_sitting": "pedestrian",
    "Cyclist": "bicycle",
    "Car": "car",
    "Van": "car",
    "Truck": "truck",
}
"""Our class of each of the dataset's; `Person` is how tracking names somebody who sits. Trams and `Misc`, such as
trailers and Segways, have none."""
COLUMNS = 15
"""Columns of a row, without frame and track."""


@dataclass(frozen=True, slots=True)
class Labelled:
    """An object in a frame."""

    frame: int
    """The frame's number; 0 in the object benchmark."""
    track: str
    """What names it over time; empty in the object benchmark."""
    name: str
    """The dataset's class."""
    values: FloatArray
    """`(7,)` in the ego frame: centre, length, width, height, yaw."""


def read_labels(path: Path, camera0_to_ego: FloatArray, has_tracks: bool) -> tuple[list[Labelled], Counter[str]]:
    """Returns the objects of a benchmark's label file, with frames and tracks or without, and how many regions and rows
    are left out, by reason. `camera0_to_ego` `(4, 4)` leads from the rectified frame of camera 0.
    """
    try:
        lines = path.read_text(encoding="ascii").splitlines()
    except UnicodeDecodeError as error:
        raise SceneError(f"{path}: is no text; {AGAIN}") from error
    keys, rows = [], []
    left_out: Counter[str] = Counter()
    for place, line in enumerate(lines, start=1):
        words = line.split()
        if not words:
            continue
        try:
            frame, track, name, row = _row(words, has_tracks)
        except ValueError as error:
            left_out[f"label: {path}: line {place}: {error}; {AGAIN}"] += 1
            continue
        keys.append((frame, track, name))
        rows.append(row)
    boxes = boxes_in_ego(np.array(rows, dtype=np.float64).reshape(-1, 7), camera0_to_ego)
    return [Labelled(*key, values) for key, values in zip(keys, boxes, strict=True)], left_out


def _row(words: Sequence[str], has_tracks: bool) -> tuple[int, str, str, list[float]]:
    """Returns frame, track, type and x, y, z, length, height, width, `rotation_y` of a row. Raises `ValueError` with
    what is wrong.
    """
    first = 2 if has_tracks else 0
    if len(words) not in (first + COLUMNS, first + COLUMNS + 1):  # results have a score, too
        raise ValueError(f"{len(words)} columns, not {first + COLUMNS}")
    frame, track = (int(words[0]), words[1]) if has_tracks else (0, "")
    name = words[first]
    height, width, length, x, y, z, angle = (float(word) for word in words[first + 8 : first + 15])
    if not all(map(math.isfinite, (height, width, length, x, y, z, angle))):
        raise ValueError("a number is not finite")
    if name != DONT_CARE and not all(SMALLEST <= side <= LARGEST for side in (height, width, length)):
        raise ValueError(f"height, width or length: is not positive, or beyond {LARGEST:.0f} m")
    if name != DONT_CARE and max(map(abs, (x, y, z))) > FARTHEST:
        raise ValueError(f"x, y or z: is beyond {FARTHEST:.0f} m")
    return frame, track, name, [x, y, z, length, height, width, angle]


def boxes_in_ego(rows: FloatArray, camera0_to_ego: FloatArray) -> FloatArray:
    """Returns boxes `(n, 7)`, centre, length, width, height and yaw in the ego frame, of rows `(n, 7)`: x, y, z of the
    bottom, length, height, width and `rotation_y` in the rectified frame of camera 0.
    """
    length, height, width, angle = rows[:, 3:].T
    centres = apply(camera0_to_ego, rows[:, :3] - height[:, None] / 2 * np.array([0.0, 1.0, 0.0]))
    forward = np.stack([np.cos(angle), np.zeros_like(angle), -np.sin(angle)], axis=1) @ camera0_to_ego[:3, :3].T
    return np.c_[centres, length, width, height, np.arctan2(forward[:, 1], forward[:, 0])]


def read_tracklets(path: Path) -> tuple[list[Labelled], Counter[str]]:
    """Returns the objects of a drive's `tracklet_labels.xml`, and how many poses are left out, by reason. Raises
    `SceneError` for a file that is no such XML.
    """
    try:
        items = ElementTree.parse(path).getroot().findall("./tracklets/item")
    except (ElementTree.ParseError, UnicodeDecodeError) as error:
        raise SceneError(f"{path}: is no XML of tracklets ({error}); {AGAIN}") from error
    objects: list[Labelled] = []
    left_out: Counter[str] = Counter()
    for number, item in enumerate(items):
        try:
            name, first = item.findtext("objectType", ""), int(item.findtext("first_frame", ""))
            height, width, length = (_positive(item, side) for side in ("h", "w", "l"))
        except ValueError as error:
            left_out[f"tracklet: {path}: item {number}: {error}; {AGAIN}"] += 1
            continue
        for step, pose in enumerate(item.findall("./poses/item")):
            try:
                x, y, z, yaw = (_number(pose, axis) for axis in ("tx", "ty", "tz", "rz"))
            except ValueError as error:
                left_out[f"pose of a tracklet: {path}: item {number}: {error}; {AGAIN}"] += 1
                continue
            if max(map(abs, (x, y, z))) > FARTHEST:
                left_out[f"pose of a tracklet: {path}: item {number}: is beyond {FARTHEST:.0f} m; {AGAIN}"] += 1
                continue
            centre = apply(VELODYNE, np.array([x, y, z + height / 2]))
            wrapped = math.atan2(math.sin(yaw), math.cos(yaw))  # the Velodyne and the ego frame have the same axes
            values = np.array([*centre, length, width, height, wrapped])
            objects.append(Labelled(first + step, str(number), name, values))
    return objects, left_out


def _number(node: ElementTree.Element, name: str) -> float:
    text = node.findtext(name, "")
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{name}: {text!r} is no number")
    return value


def _positive(node: ElementTree.Element, name: str) -> float:
    value = _number(node, name)
    if not SMALLEST <= value <= LARGEST:
        raise ValueError(f"{name}: {value} is not positive, or beyond {LARGEST:.0f} m")
    return value


def known(objects: Sequence[Labelled]) -> tuple[list[Labelled], list[str]]:
    """Returns the objects whose class is one of ours, and the classes of the others."""
    chosen = [each for each in objects if LABELS.get(each.name) in CLASSES]
    return chosen, [each.name for each in objects if LABELS.get(each.name) not in CLASSES]


def boxes_of(
    objects: Sequence[Labelled],
    values: FloatArray,
    points: npt.NDArray[np.int64] | None,
    velocities: FloatArray | None = None,
    track_ids: Sequence[int] | None = None,
) -> Boxes:
    """Returns `objects` of known classes as boxes: their `values` `(n, 7)`, the `points` in each `(n,)`, `velocities`
    `(n, 2)` and `track_ids`, None where unknown.
    """
    over_ground = np.full((len(objects), 2), np.nan) if velocities is None else velocities
    ids = None if track_ids is None else np.array(track_ids, dtype=np.int64)
    return Boxes(np.c_[values, over_ground], tuple(LABELS[each.name] for each in objects), track_ids=ids, points=points)


def by_frame(objects: Sequence[Labelled]) -> dict[int, list[Labelled]]:
    """Returns objects by the number of their frame."""
    frames: dict[int, list[Labelled]] = {}
    for each in objects:
        frames.setdefault(each.frame, []).append(each)
    return frames


def each_track_once(objects: Sequence[Labelled]) -> list[Labelled]:
    """Returns the objects in the order of their frames, without those whose track has another object in their frame:
    see `once_a_time`. Regions without annotations share a track.
    """
    ordered = sorted(objects, key=lambda each: each.frame)
    named = [each for each in ordered if each.name != DONT_CARE]
    if not named:
        return ordered
    frames = np.array([each.frame for each in named], dtype=np.int64)
    tracks = np.unique([each.track for each in named], return_inverse=True)[1].astype(np.int64)
    once = once_a_time(frames, tracks, values_of(named)[:, :3]).tolist()
    repeated = {id(each) for each, is_kept in zip(named, once, strict=True) if not is_kept}
    return [each for each in ordered if id(each) not in repeated]


def values_of(objects: Sequence[Labelled]) -> FloatArray:
    """Returns the boxes `(n, 7)` of objects, see `Labelled`."""
    return np.array([each.values for each in objects], dtype=np.float64).reshape(-1, 7)


def count_points(values: FloatArray, sweep: FloatArray) -> npt.NDArray[np.int64]:
    """Returns how many points of a sweep `(m, 3+)` in the Velodyne's frame lie in each of boxes `(n, 7)` `(n,)`."""
    placed = apply(VELODYNE, sweep[:, :3].astype(np.float64))
    return np.array([points_in_box(placed, box).sum() for box in values], dtype=np.int64)
