"""The map of a 123D log, and the lights of its lanes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgpack
import numpy as np
import shapely

from framework.data.sources.areas import sound_areas
from framework.data.sources.base import inside
from framework.data.sources.py123d.tables import LIGHTS, MAP, Table, read_table
from framework.data.sources.tracks import FUTURE, MAP_M, PERIOD, SECOND, Nanoseconds
from framework.scene.frames import apply, invert
from framework.scene.types import FloatArray, SceneError

LAYERS = (
    *("lane", "lane group", "intersection", "crosswalk", "walkway", "carpark", "generic drivable", "stop zone"),
    *("road edge", "road line", "speed bump"),
)
"""Names of the layers, by number."""
LANE, DRIVABLE = 0, (0, 2, 5, 6)
"""The layer of lanes, and those whose surfaces can be driven on."""
RED = 2
"""The status of a light that forbids to go on."""


@dataclass(frozen=True, slots=True)
class Road:
    """What of the map lies near a log."""

    areas: tuple[FloatArray, ...]
    """Polygons `(k, 3)` that can be driven on, in the fixed frame."""
    entries: Mapping[int, FloatArray]
    """Where a lane begins: the ends `(2, 3)` of the line across it, by the lane's number."""
    lights: tuple[Nanoseconds, tuple[tuple[int, ...], ...]]
    """Times of the lights' rows, and the lanes that are red in each."""
    file: Path | None = None
    """The map's file; None where there is none."""

    def red_lights(self, now: int, pose: FloatArray) -> FloatArray | None:
        """Returns the stop lines `(n, 6)` that are red at some time of the horizon, as `Surroundings` has them, in the
        ego frame `pose` of `now`; None where no light is known.
        """
        times, red = self.lights
        end = now + FUTURE * PERIOD
        rows = range(*np.searchsorted(times, [now, end + 1]).tolist())
        if not rows:
            return None
        lines = []
        for lane in sorted({lane for row in rows for lane in red[row]} & self.entries.keys()):
            ends = apply(invert(pose), self.entries[lane])[:, :2]
            on = np.array([lane in red[row] for row in rows], dtype=np.int8)
            changes = np.flatnonzero(np.diff(np.r_[0, on, 0]))
            for first, last in changes.reshape(-1, 2).tolist():
                start, stop = times[rows[first]], times[rows[last]] if last < len(rows) else end
                lines.append([*ends.ravel(), (start - now) / SECOND, (stop - now) / SECOND])
        return np.array(lines, dtype=np.float64).reshape(-1, 6)


def read_road(folder: Path, dataset: str, location: str | None, driven: FloatArray) -> tuple[Road, dict[str, int]]:
    """Returns the map near the positions `driven` `(k, 3)`, and what is left out by name."""
    counts: Counter[str] = Counter()
    lights = _lights(folder / f"{LIGHTS}.arrow", counts)
    places = [folder / f"{MAP}.arrow"]
    if location is not None and len(folder.parents) > 2:
        places.append(inside(folder.parents[2] / "maps", f"{dataset}/{dataset}_{location}.arrow"))
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        counts["log without a map"] = 1
        return Road((), {}, lights), dict(counts)
    try:
        table = read_table(path)
        areas, entries = _surfaces(table, driven, counts)
    except SceneError as error:
        return Road((), {}, lights, path), {**counts, f"map that can't be read ({error})": 1}
    return Road(areas, entries, lights, path), dict(counts)


def _surfaces(
    table: Table, driven: FloatArray, counts: Counter[str]
) -> tuple[tuple[FloatArray, ...], dict[int, FloatArray]]:
    """Returns the drivable polygons and the entries of lanes near a log; counts the entries of other layers. A map
    without heights gets those of the nearest position driven.
    """
    missing = sorted({"object_id", "map_layer", "features", "wkb"} - set(table.rows.schema.names))
    if missing:
        raise SceneError(f"{table.path}: column {', '.join(missing)}: is missing; convert the map again")
    try:
        shapes = shapely.from_wkb(table.rows["wkb"].to_numpy())
    except shapely.errors.GEOSException as error:
        raise SceneError(f"{table.path}: wkb: {error}; convert the map again") from error
    layers = table.rows["map_layer"].to_numpy()
    low, high = driven[:, :2].min(axis=0) - MAP_M, driven[:, :2].max(axis=0) + MAP_M
    areas: list[FloatArray] = []
    entries: dict[int, FloatArray] = {}
    for row in np.flatnonzero(shapely.intersects(shapes, shapely.box(*low, *high))).tolist():
        layer = int(layers[row])
        if layer not in DRIVABLE:
            counts[f"{LAYERS[layer] if layer < len(LAYERS) else f'layer {layer}'} of the map"] += 1
            continue
        try:
            lines = _lines(table.rows["features"][row].as_py(), None if table.about.get("map_has_z") else driven)
            areas += sound_areas(lines["outline"], f"{LAYERS[layer]} of the map", str(table.path), counts)
            if layer == LANE:
                entry = np.stack([lines["left_boundary"][0], lines["right_boundary"][0]])
                entries[int(table.rows["object_id"][row].as_py())] = entry
        except (KeyError, ValueError, TypeError, IndexError, msgpack.UnpackException):
            counts[f"{LAYERS[layer]} of the map whose lines can't be read"] += 1
    return tuple(areas), entries


def _lines(features: bytes, driven: FloatArray | None) -> dict[str, FloatArray]:
    """Returns the lines `(k, 3)` of an entry by name, at the heights of `driven` positions where these are given. An
    array is packed as its type, shape and bytes, whose keys are bytes or texts.
    """
    lines: dict[str, FloatArray] = {}
    for name, packed in msgpack.unpackb(features, strict_map_key=False).items():
        if not isinstance(packed, dict):
            continue
        plain = {key.decode() if isinstance(key, bytes) else key: value for key, value in packed.items()}
        line = np.frombuffer(plain["data"], dtype=plain["dtype"]).reshape(plain["shape"]).astype(np.float64)
        if driven is not None:
            apart = np.linalg.norm(line[:, None, :2] - driven[None, :: max(1, len(driven) // 100), :2], axis=2)
            line = np.c_[line[:, :2], driven[:: max(1, len(driven) // 100), 2][apart.argmin(axis=1)]]
        lines[name] = line
    return lines


def _lights(path: Path, counts: Counter[str]) -> tuple[Nanoseconds, tuple[tuple[int, ...], ...]]:
    none: Nanoseconds = np.zeros(0, dtype=np.int64)
    if not path.is_file():
        return none, ()
    try:
        table = read_table(path)
        rows = zip(table.column("lane_id").to_pylist(), table.column("status").to_pylist(), strict=True)
        red = tuple(
            tuple(lane for lane, status in zip(lanes or (), states or (), strict=True) if status == RED)
            for lanes, states in rows
        )
        return table.times(), red
    except (SceneError, ValueError, TypeError) as error:
        counts[f"lights that can't be read ({error})"] = 1
        return none, ()
