"""Poses of a log: transforms at any time, from those that were known by then."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from framework.data.sources.tracks import LONGEST_GAP, Nanoseconds, Track
from framework.scene.frames import quaternion_rotation
from framework.scene.types import FloatArray, SceneError


@dataclass(frozen=True, slots=True)
class Poses:
    """Poses of a vehicle, or of a sensor on it, in its log's fixed frame."""

    times: Nanoseconds
    """`(k,)`, ascending."""
    quaternions: FloatArray
    """Rotations to the fixed frame, `(k, 4)`: w, x, y, z, of unit length."""
    positions: FloatArray
    """`(k, 3)` (m)."""
    faults: Mapping[str, int]
    """Rows that could not be used as they were, by what is wrong with them."""

    @property
    def track(self) -> Track:
        """The poses as a track."""
        return Track(self.times, np.c_[self.positions, yaws(quaternion_rotation(self.quaternions))])

    def cover(self, times: Nanoseconds) -> npt.NDArray[np.bool_]:
        """Returns at which of `times` `(n,)` there is a pose: `LONGEST_GAP` or less after one."""
        before = np.searchsorted(self.times, times, side="right") - 1
        return np.asarray((before >= 0) & (times - self.times[before] <= LONGEST_GAP))

    def at(self, times: Nanoseconds, known: int | None = None) -> FloatArray:
        """Returns the transforms to the fixed frame `(n, 4, 4)` at `times` `(n,)`: the pose of that time, else between
        its two neighbours. Where the later one is after `known` (None: after the time itself), the last two poses are
        carried on.

        Raises `SceneError` for a time that the poses do not `cover`.
        """
        if not self.cover(times).all():
            raise SceneError(f"poses: none within {LONGEST_GAP / 1e9} s before a moment; restore their file")
        before = np.searchsorted(self.times, times, side="right") - 1
        last = before if known is None else np.searchsorted(self.times, np.maximum(times, known), side="right") - 1
        right = np.where((self.times[before] < times) & (before < last), before + 1, before)
        left = np.maximum(right - 1, 0)
        span = np.maximum(self.times[right] - self.times[left], 1)
        share = (np.where(left < right, times - self.times[left], 0) / span)[:, None]
        first, second = self.quaternions[left], self.quaternions[right]
        second = np.where((first * second).sum(axis=1, keepdims=True) < 0, -second, second)
        quaternion = first + share * (second - first)
        transforms = np.tile(np.eye(4), (len(times), 1, 1))
        transforms[:, :3, :3] = quaternion_rotation(quaternion / np.linalg.norm(quaternion, axis=1, keepdims=True))
        transforms[:, :3, 3] = self.positions[left] + share * (self.positions[right] - self.positions[left])
        return transforms


def ordered_poses(
    times: Nanoseconds, quaternions: FloatArray, positions: FloatArray, source: str, remedy: str
) -> Poses:
    """Returns the poses of rows in any order: times `(n,)`, quaternions `(n, 4)` w, x, y, z of any length and positions
    `(n, 3)`. Rows that are no pose are left out, and so are those of a time that an earlier one has; both are counted,
    and so are those that had to be sorted.

    Raises `SceneError` with `source` (a file and its columns) and `remedy` where no row is a pose.
    """
    unit, sound = unit_quaternions(quaternions)
    sound &= np.isfinite(positions).all(axis=1)
    if not sound.any():
        raise SceneError(f"{source}: no row is a pose; {remedy}")
    ordered, first = np.unique(times[sound], return_index=True)
    faults = {
        f"pose whose quaternion or position is none ({source})": int((~sound).sum()),
        f"pose out of the order of time, sorted ({source})": int((np.diff(times) < 0).sum()),
        f"pose of a time that another has ({source})": int(sound.sum()) - len(ordered),
    }
    counted = {fault: count for fault, count in faults.items() if count}
    return Poses(ordered.astype(np.int64), unit[sound][first], positions[sound][first], counted)


def unit_quaternions(quaternions: FloatArray) -> tuple[FloatArray, npt.NDArray[np.bool_]]:
    """Returns quaternions `(n, 4)` at unit length, and which of them `(n,)` are rotations: the others are zero or not
    finite, and come back as the identity.
    """
    length = np.linalg.norm(quaternions, axis=1)
    sound = np.isfinite(length) & (length > 1e-6)
    unit = np.where(sound[:, None], quaternions, [1.0, 0.0, 0.0, 0.0]) / np.where(sound, length, 1.0)[:, None]
    return unit, sound


def yaws(rotations: FloatArray) -> FloatArray:
    """Returns the headings `(n,)` of rotations `(n, 3, 3)`."""
    headings: FloatArray = np.arctan2(rotations[:, 1, 0], rotations[:, 0, 0])
    return headings


def newest(times: Nanoseconds, at: Nanoseconds, age: int) -> npt.NDArray[np.int64]:
    """Returns the indices `(n,)` in the ascending `times` of the last one at or before each of `at` `(n,)`, and at most
    `age` ns before it; -1 where there is none.
    """
    index = np.searchsorted(times, at, side="right") - 1
    if not len(times):
        return index.astype(np.int64)
    return np.where((index >= 0) & (at - times[index] <= age), index, -1).astype(np.int64)
