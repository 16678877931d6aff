"""Logged tracks: poses and velocities of bodies, and the ego's history and future."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from framework.scene.frames import apply, invert, wrap_angle, yaw_of
from framework.scene.kinematics import fit_controls, unicycle_rollout
from framework.scene.types import HORIZON_S, RATE_HZ, FloatArray, SceneError, Surroundings, Trajectory

Nanoseconds = npt.NDArray[np.int64]

SECOND = 1_000_000_000
PERIOD = round(SECOND / RATE_HZ)
PAST, FUTURE = 6, round(HORIZON_S * RATE_HZ)
"""Numbers of states before the current one, and after it."""
LONGEST_GAP = SECOND // 2
"""Time (ns) between neighbouring poses beyond which there is no interpolation."""
CLOSE_M = 0.1
"""Distance (m) that a fitted future may have from the logged positions."""
SMOOTHNESS = 0.05
"""Weight of the controls' second differences; enough for the poses of a good localisation."""
HARDEST_MPS2, TIGHTEST_PER_M = 9.8, 0.2
"""Acceleration and curvature beyond which a log is faulty."""
MAP_M = 200.0
"""Distance (m, along both axes) from the ego beyond which polygons are left out."""


@dataclass(frozen=True, slots=True)
class Track:
    """Logged poses of one body."""

    times: Nanoseconds
    """`(k,)` in ns, ascending."""
    poses: FloatArray
    """`(k, 4)`: x, y, z (m) and heading (rad) in the log's fixed frame."""

    def at(self, times: Nanoseconds) -> FloatArray:
        """Returns poses `(n, 4)` at `times` `(n,)`, interpolated; NaN outside the track and within its gaps."""
        right = np.clip(np.searchsorted(self.times, times), 0, len(self.times) - 1)
        left = np.where(self.times[right] == times, right, np.maximum(right - 1, 0))
        span = self.times[right] - self.times[left]
        share = (times - self.times[left]) / np.maximum(span, 1)
        step = self.poses[right] - self.poses[left]
        step[:, 3] = wrap_angle(step[:, 3])
        poses: FloatArray = self.poses[left] + share[:, None] * step
        poses[(times < self.times[0]) | (times > self.times[-1]) | (span > LONGEST_GAP)] = np.nan
        return poses

    def velocity(self, times: Nanoseconds, half: int) -> FloatArray:
        """Returns velocities `(n, 3)` (m/s) over ground, as differences over `half` ns to either side, less at the
        track's ends; NaN where unknown.
        """
        before, after = np.maximum(times - half, self.times[0]), np.minimum(times + half, self.times[-1])
        elapsed = np.where(after > before, (after - before) / SECOND, np.nan)
        velocity: FloatArray = (self.at(after) - self.at(before))[:, :3] / elapsed[:, None]
        return velocity


def seen_from(frame: FloatArray, poses: FloatArray) -> FloatArray:
    """Returns x, y, heading `(..., 3)` of poses `(..., 4)` in the ego frame, which `frame` `(4, 4)` places in the
    log's.
    """
    moved = apply(invert(frame), poses[..., :3])
    moved[..., 2] = wrap_angle(poses[..., 3] - yaw_of(frame[:3, :3]))
    return moved


def future_times(now: int) -> Nanoseconds:
    """Returns the times `(FUTURE,)` of a future's states."""
    return now + PERIOD * np.arange(1, FUTURE + 1, dtype=np.int64)


def has_history(first: int, now: int) -> bool:
    """Returns whether a log that starts at `first` covers the history before `now`."""
    return first <= now - PAST * PERIOD


def has_future(now: int, last: int) -> bool:
    """Returns whether a log that ends at `last` covers the future after `now`."""
    return now + FUTURE * PERIOD <= last


def ego_history(ego: Track, now: int, frame: FloatArray) -> Trajectory:
    """Returns the ego's logged states up to `now`, in its frame at `now`."""
    times = now - PERIOD * np.arange(PAST, -1, -1, dtype=np.int64)
    return Trajectory(_states(ego, times, frame))


def ego_future(ego: Track, now: int, frame: FloatArray, source: str) -> Trajectory:
    """Returns the ego's future: the kinematic rollout closest to the log, whose controls are free of the log's noise.

    Raises `SceneError` when it is farther than `CLOSE_M` from a logged position, or when its controls are impossible.
    """
    logged = Trajectory(_states(ego, future_times(now), frame))
    initial = np.array([0.0, 0.0, 0.0, _states(ego, np.array([now]), frame)[0, 3]])
    controls = fit_controls(initial, logged, smoothness=SMOOTHNESS)
    states = unicycle_rollout(initial, controls, 1.0 / RATE_HZ)
    off = float(np.linalg.norm(states[:, :2] - logged.states[:, :2], axis=1).max())
    if not off < CLOSE_M:
        raise SceneError(f"{source}: future: no kinematic path is within {CLOSE_M} m of the log ({off:.2f} m)")
    hardest = np.abs(controls).max(axis=0)
    if (hardest > (HARDEST_MPS2, TIGHTEST_PER_M)).any():
        raise SceneError(
            f"{source}: future: {hardest[0]:.1f} m/s^2 and {hardest[1]:.2f} 1/m are impossible; check the log's poses"
        )
    return Trajectory(states)


def agents_of(tracks: Sequence[Track], now: int, frame: FloatArray) -> FloatArray:
    """Returns futures `(n, FUTURE, 3)` of other bodies in the ego frame, NaN once they are gone; see `Surroundings`."""
    times = future_times(now)
    agents = np.full((len(tracks), FUTURE, 3), np.nan)
    for agent, track in zip(agents, tracks, strict=True):
        agent[:] = seen_from(frame, track.at(times))
    return agents


def surroundings_of(
    tracks: Sequence[Track], drivable: Sequence[FloatArray], ego: Track, now: int, frame: FloatArray
) -> Surroundings:
    """Returns what metrics need: the other bodies' futures, the polygons of `drivable` `(k, 3)` near the ego, and as
    the route the ego's own path from its first logged pose to its last.
    """
    areas = (apply(invert(frame), area)[:, :2] for area in drivable)
    near = tuple(area for area in areas if (area.min(axis=0) < MAP_M).all() and (area.max(axis=0) > -MAP_M).all())
    return Surroundings(agents_of(tracks, now, frame), near, _route(ego, frame))


def _states(ego: Track, times: Nanoseconds, frame: FloatArray) -> FloatArray:
    poses = seen_from(frame, ego.at(times))
    speed = np.linalg.norm(ego.velocity(times, SECOND // 10)[:, :2], axis=1)
    return np.c_[poses, speed]


def _route(ego: Track, frame: FloatArray, spacing: float = 1.0) -> FloatArray | None:
    """Returns the driven path `(k, 2)` with a point every `spacing` metres; None when the ego never moved that far."""
    points = seen_from(frame, ego.poses)[:, :2]
    driven = np.r_[0.0, np.cumsum(np.linalg.norm(np.diff(points, axis=0), axis=1))]
    if driven[-1] < spacing:
        return None
    wanted = np.arange(0.0, driven[-1], spacing)
    return np.stack([np.interp(wanted, driven, points[:, axis]) for axis in (0, 1)], axis=1)
