"""KITTI's inertial navigation: files of 30 values, of which latitude, longitude, altitude, roll, pitch and yaw place
the IMU.

The development kit projects by Mercator, with the scale of the drive's first latitude: with s = cos(lat_0) and
R = 6378137 m, x = s R lon, y = s R ln tan(pi / 4 + lat / 2), z = alt, angles in radians, relative to the first pose.
The rotation is Rz(yaw) Ry(pitch) Rx(roll); yaw 0 is east, and counter-clockwise is positive.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from framework.data.sources.kitti.calibration import AGAIN
from framework.data.sources.poses import Poses
from framework.scene.types import FloatArray, SceneError

EARTH_M = 6_378_137.0
"""The Earth's radius in the projection."""
VALUES = 30
"""Values of a packet."""


def read_poses(
    packets: Mapping[int, str], times: Mapping[int, int], source: Path
) -> tuple[Poses, npt.NDArray[np.int64], Counter[str]]:
    """Returns the IMU's poses, the numbers of their frames `(k,)`, and how many packets are left out, by reason.

    `packets` are the lines by the frame's number, `times` theirs (ns), `source` is the file or folder for messages.
    Raises `SceneError` where no packet is a pose.
    """
    left_out: Counter[str] = Counter()
    sound: list[tuple[int, FloatArray]] = []
    for number, line in sorted(packets.items()):
        try:
            sound.append((number, read_packet(line)))
        except ValueError as error:
            left_out[f"pose: {source}: packet {number}: {error}; {AGAIN}"] += 1
    timed = [(number, packet) for number, packet in sound if number in times]
    left_out[f"pose without a time: {source}"] = len(sound) - len(timed)
    kept = ascending([times[number] for number, _ in timed])
    left_out[f"pose out of the order of time: {source}; {AGAIN}"] = len(timed) - len(kept)
    if not kept:
        raise SceneError(f"{source}: no packet of {VALUES} values has a time; {AGAIN}")
    values = np.stack([timed[place][1] for place in kept])
    numbers = np.array([timed[place][0] for place in kept], dtype=np.int64)
    stamps = np.array([times[number] for number in numbers.tolist()], dtype=np.int64)
    first = sound[0][1]
    positions = mercator(values[:, :3], first[0]) - mercator(first[None, :3], first[0])
    return Poses(stamps, quaternions_of(values[:, 3:6]), positions, {}), numbers, +left_out


def read_packet(line: str) -> FloatArray:
    """Returns latitude, longitude (degrees), altitude (m), roll, pitch and yaw (rad) of a packet `(6,)`. Raises
    `ValueError` with what is wrong.
    """
    words = line.split()
    if len(words) != VALUES:
        raise ValueError(f"{len(words)} values, not {VALUES}")
    values = np.array([float(word) for word in words[:6]])
    if not np.isfinite(values).all():
        raise ValueError("a value is not finite")
    if not (abs(values[0]) < 90.0 and abs(values[1]) <= 180.0):
        raise ValueError(f"lat, lon: {values[0]}, {values[1]} are no place on the Earth")
    return values


def mercator(places: FloatArray, first_latitude: float) -> FloatArray:
    """Returns x (east), y (north), z `(n, 3)` (m) of latitudes, longitudes (degrees) and altitudes `(n, 3)`, at the
    scale of `first_latitude`.
    """
    scale = math.cos(math.radians(first_latitude)) * EARTH_M
    latitude, longitude = np.radians(places[:, 0]), np.radians(places[:, 1])
    projected = np.stack([scale * longitude, scale * np.log(np.tan(np.pi / 4 + latitude / 2)), places[:, 2]], axis=1)
    return np.asarray(projected, dtype=np.float64)


def quaternions_of(angles: FloatArray) -> FloatArray:
    """Returns w, x, y, z `(n, 4)` of rotations Rz(yaw) Ry(pitch) Rx(roll) of roll, pitch, yaw `(n, 3)`."""
    (cr, cp, cy), (sr, sp, sy) = np.cos(angles.T / 2), np.sin(angles.T / 2)
    rows = [
        cr * cp * cy + sr * sp * sy,
        sr * cp * cy - cr * sp * sy,
        cr * sp * cy + sr * cp * sy,
        cr * cp * sy - sr * sp * cy,
    ]
    return np.stack(rows, axis=1)


def ascending(times: Sequence[int]) -> list[int]:
    """Returns the places of the most of `times` that ascend: a stamp that is wrong costs itself alone (the longest
    increasing subsequence, Fredman 1975, Discrete Math. 11).
    """
    ends: list[int] = []
    places: list[int] = []
    before: list[int] = []
    for place, time in enumerate(times):
        length = bisect_left(ends, time)
        before.append(places[length - 1] if length else -1)
        ends[length : length + 1] = [time]
        places[length : length + 1] = [place]
    chosen = [places[-1]] if places else []
    while chosen and before[chosen[-1]] >= 0:
        chosen.append(before[chosen[-1]])
    return chosen[::-1]
