"""The CAN bus of nuScenes, `can_bus/scene-0061_<message>.json`: lists of rows with a time `utime` (microseconds).

Columns: `can_bus/README.md` of nuscenes-devkit 1.2.0. `pose` (50 Hz) has `vel` and `accel` along the vehicle's axes
(m/s, m/s^2) and `rotation_rate` about them (rad/s), `steeranglefeedback` (100 Hz) has `value`, the angle of the
steering wheel (rad, positive to the left), `vehicle_monitor` (2 Hz) `throttle` (0 to 1000) and `brake` (bar, 0 to 126).
Scenes 161 to 168, 170 to 176 and 309 to 314 have no files.
"""

from __future__ import annotations

import functools
import json
import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from framework.data.sources.nuscenes.tables import MICROSECOND
from framework.data.sources.poses import newest
from framework.data.sources.tracks import Nanoseconds

AGAIN = "unpack can_bus.zip again"
COLUMNS: Mapping[str, Mapping[str, Callable[[Any], float]]] = {
    "pose": {
        "speed_mps": lambda row: row["vel"][0],
        "acceleration_mps2": lambda row: row["accel"][0],
        "yaw_rate_radps": lambda row: row["rotation_rate"][2],
    },
    "steeranglefeedback": {"steering_wheel_rad": lambda row: row["value"]},
    "vehicle_monitor": {"throttle": lambda row: row["throttle"] / 1000.0, "brake_bar": lambda row: row["brake"]},
}
"""What is read, by message."""
OLDEST = {"pose": 100_000_000, "steeranglefeedback": 100_000_000, "vehicle_monitor": 1_000_000_000}
"""Age (ns) up to which a row tells of a moment, by message."""


@dataclass(frozen=True, slots=True)
class Message:
    """The rows of a message that can be used."""

    times: Nanoseconds
    """`(k,)`, ascending."""
    values: Mapping[str, tuple[float, ...]]
    """`k` values of each column."""


def can_bus_files(root: Path, scene: str) -> dict[str, Path]:
    """Returns the files of a scene by their message."""
    return {path.stem.partition("_")[2]: path for path in sorted((root / "can_bus").glob(f"{scene}_*.json"))}


def survey_can_bus(root: Path, scene: str) -> dict[str, int]:
    """Returns what of a scene's CAN bus is absent, not read or faulty, by name."""
    files = can_bus_files(root, scene)
    if not files:
        return {"scene without files of the CAN bus": 1}
    counts = Counter({f"CAN bus message {name} that is not read": 1 for name in files.keys() - COLUMNS.keys()})
    counts.update({f"scene without {name} of the CAN bus": 1 for name in COLUMNS.keys() - files.keys()})
    for name in COLUMNS.keys() & files.keys():
        counts.update(read_message(files[name])[1])
    return dict(counts)


def state_at(root: Path, scene: str, now: int) -> dict[str, float]:
    """Returns what the vehicle measured by a moment (ns), the newest of each column; empty where nothing is there."""
    state: dict[str, float] = {}
    for name, path in can_bus_files(root, scene).items():
        message = read_message(path)[0] if name in COLUMNS else None
        if message is None:
            continue
        at = int(newest(message.times, np.array([now]), OLDEST[name])[0])
        if at >= 0:
            state |= {column: values[at] for column, values in message.values.items()}
    return dict(sorted(state.items()))


@functools.lru_cache(maxsize=8)
def read_message(path: Path) -> tuple[Message | None, Mapping[str, int]]:
    """Returns the rows of a file in the order of time, and how many are left out, by field and reason; None where the
    file is none. Cached, since the key frames of a scene are read in sequence.
    """
    columns = COLUMNS[path.stem.partition("_")[2]]
    left_out: Counter[str] = Counter()
    try:
        rows = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        return None, {f"{path}: is not JSON ({error}); {AGAIN}": 1}
    if not isinstance(rows, list):
        return None, {f"{path}: holds a {type(rows).__name__}, not a list of rows; {AGAIN}": 1}
    read: dict[int, list[float]] = {}
    for row in rows:
        try:
            time, values = int(row["utime"]), [float(take(row)) for take in columns.values()]
        except (LookupError, TypeError, ValueError, OverflowError) as error:
            left_out[f"{path}: {error!r}: a column is missing or no number; {AGAIN}"] += 1
            continue
        if all(map(math.isfinite, values)):
            read[time * MICROSECOND] = values
        else:
            left_out[f"{path}: {', '.join(columns)}: not finite; {AGAIN}"] += 1
    times = sorted(read)
    table = [tuple(read[time][place] for time in times) for place in range(len(columns))]
    return Message(np.array(times, dtype=np.int64), dict(zip(columns, table, strict=True))), left_out
