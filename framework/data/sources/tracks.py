"""Logged tracks: poses and velocities of bodies, and the ego's history and future."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from framework.scene.check import FARTHEST, FARTHEST_MAP, FASTEST, are_extents
from framework.scene.frames import apply, invert, wrap_angle, yaw_of
from framework.scene.kinematics import fit_controls, unicycle_rollout
from framework.scene.types import HORIZON_STEPS, RATE_HZ, Boxes, FloatArray, SceneError, Surroundings, Trajectory

Nanoseconds = npt.NDArray[np.int64]

SECOND = 1_000_000_000
PERIOD = round(SECOND / RATE_HZ)
PAST, FUTURE = 6, HORIZON_STEPS
"""Numbers of states before the current one, and after it."""
LONGEST_GAP = SECOND // 2
"""Time (ns) between neighbouring poses beyond which there is no interpolation."""
EGO_SPAN, BODY_SPAN = 2 * SECOND // 5, SECOND
"""Time (ns) over which the velocities of the ego and of others are measured: annotations are noisier than poses."""
CLOSE_M = 0.1
"""Distance (m) that a fitted future may have from the logged positions."""
SMOOTHNESS = 0.05
"""Weight of the controls' second differences; enough for the poses of a good localisation."""
HARDEST_MPS2, TIGHTEST_PER_M = 9.8, 0.2
"""Acceleration and curvature beyond which a log is faulty."""
NO_PATH = "future that no kinematic path follows"
"""What counts of such a future are named."""
LEAP = f"velocity of a box whose track leaps, faster than {FASTEST:.0f} m/s"
"""What velocities that are taken for unknown are named."""
FAR_BOX = f"box farther than {FARTHEST:.0f} m, or of a size that no object has"
"""What boxes are named whose annotations are damaged."""
MAP_M = 200.0
"""Distance (m) from the ego beyond which polygons (along both axes) and bodies that appear later are left out."""


@dataclass(frozen=True, slots=True)
class Track:
    """Logged poses of one body."""

    times: Nanoseconds
    """`(k,)` in ns, ascending."""
    poses: FloatArray
    """`(k, 4)`: x, y, z (m) and heading (rad) in the log's fixed frame."""
    longest_gap: int = LONGEST_GAP
    """Time (ns) between neighbouring poses beyond which there is no interpolation."""

    def at(self, times: Nanoseconds) -> FloatArray:
        """Returns poses `(n, 4)` at `times` `(n,)`, interpolated; NaN outside the track and within its gaps."""
        right = np.clip(np.searchsorted(self.times, times), 0, len(self.times) - 1)
        left = np.where(self.times[right] == times, right, np.maximum(right - 1, 0))
        span = self.times[right] - self.times[left]
        share = (times - self.times[left]) / np.maximum(span, 1)
        step = self.poses[right] - self.poses[left]
        step[:, 3] = wrap_angle(step[:, 3])
        poses: FloatArray = self.poses[left] + share[:, None] * step
        poses[(times < self.times[0]) | (times > self.times[-1]) | (span > self.longest_gap)] = np.nan
        return poses

    def until(self, now: int) -> Track:
        """Returns what is known of the track at `now`: its poses up to then."""
        count = int(np.searchsorted(self.times, now, side="right"))
        return Track(self.times[:count], self.poses[:count], self.longest_gap)

    def velocity(self, times: Nanoseconds, span: int) -> FloatArray:
        """Returns velocities `(n, 3)` (m/s) over ground; NaN where unknown, as with fewer than two poses.

        Each is the slope, at its time, of the parabola through three poses, the outer ones `span` ns apart: the central
        difference where the track reaches that far to either side, a one-sided one at its ends. All are exact for a
        constant acceleration (Fornberg 1988, Math. Comput. 51).
        """
        if not len(self.times):
            return np.full((len(times), 3), np.nan)
        first, last = self.times[0], self.times[-1]
        newest = np.minimum(np.maximum(times + span // 2, first + span), last)
        oldest = np.maximum(newest - span, first)
        middle = oldest + (newest - oldest) // 2
        half, at = ((step / SECOND)[:, None] for step in (newest - middle, times - middle))
        before, centre, after = (self.at(node)[:, :3] for node in (oldest, middle, newest))
        with np.errstate(invalid="ignore", divide="ignore"):
            slope, bend = (after - before) / (2 * half), (after - 2 * centre + before) / half**2
        velocity: FloatArray = np.where(half > 0, slope + bend * at, np.nan)
        return velocity


@dataclass(frozen=True, slots=True)
class Body:
    """A body of a log."""

    label: str
    """Its class."""
    size: tuple[float, float, float]
    """Length, width and height (m)."""
    track: Track
    """Its poses in the log's frame."""


def absent_bodies(
    present: npt.NDArray[np.int64],
    track: npt.NDArray[np.int64],
    labels: npt.NDArray[np.object_],
    sizes: FloatArray,
    tracks: Sequence[Track],
    classes: Mapping[str, str],
) -> Iterator[Body]:
    """Yields the bodies of a log but for those of a moment.

    Args:
        present: Indices in `tracks` of those that are annotated at the moment.
        track: The index in `tracks` of each of a log's annotations, `(n,)`.
        labels: The dataset's class of each, `(n,)`.
        sizes: Length, width and height of each, `(n, 3)` (m).
        tracks: The log's tracks.
        classes: Our class of each of the dataset's; bodies of others are left out.
    """
    for index, row in zip(*np.unique(track, return_index=True), strict=True):
        label = classes.get(str(labels[row]))
        if label is not None and index not in present:
            length, width, height = sizes[row].tolist()
            yield Body(label, (length, width, height), tracks[index])


def once_a_time(times: Nanoseconds, track: npt.NDArray[np.int64], places: FloatArray) -> npt.NDArray[np.bool_]:
    """Returns which annotations `(n,)`, in the order of time, are the only ones of their `track` `(n,)` at their time.
    Of several that share a track the one is chosen whose place, of `places` `(n, 3)` (m) over ground, is nearest to
    where the track was before, at its start the first: no body is at two places.
    """
    chosen = np.ones(len(times), dtype=bool)
    pairs, counts = np.unique(np.stack([track, times], axis=1), axis=0, return_counts=True)
    for one in np.unique(pairs[counts > 1, 0]).tolist():
        rows = np.flatnonzero(track == one)
        chosen[rows] = False
        before = places[rows[0]]
        for shared in np.split(rows, np.flatnonzero(np.diff(times[rows])) + 1):
            row = shared[np.linalg.norm(places[shared] - before, axis=1).argmin()]
            chosen[row], before = True, places[row]
    return chosen


def without_leaps(velocities: FloatArray, left_out: MutableMapping[str, int]) -> FloatArray:
    """Returns velocities `(n, 2)` or `(n, 3)` (m/s) over ground, NaN in place of those that no road user has, which
    `left_out` then counts: infinite ones too. Their tracks leap, as where a dataset gives two bodies one name.
    """
    leaps = np.linalg.norm(velocities, axis=1) > FASTEST
    if leaps.any():
        left_out[LEAP] = left_out.get(LEAP, 0) + int(leaps.sum())
    known: FloatArray = np.where(leaps[:, None], np.nan, velocities)
    return known


def near_boxes(boxes: Boxes, left_out: MutableMapping[str, int]) -> npt.NDArray[np.bool_]:
    """Returns which boxes `(n,)` of a moment lie where annotations may be; `left_out` counts the others."""
    near = are_extents(boxes.values[:, :3], boxes.values[:, 3:6])
    if not near.all():
        left_out[FAR_BOX] = left_out.get(FAR_BOX, 0) + int((~near).sum())
    return near


def seen_from(frame: FloatArray, poses: FloatArray) -> FloatArray:
    """Returns x, y, heading `(..., 3)` of poses `(..., 4)` in the ego frame, which `frame` `(4, 4)` places in the
    log's.
    """
    moved = apply(invert(frame), poses[..., :3])
    moved[..., 2] = wrap_angle(poses[..., 3] - yaw_of(frame[:3, :3]))
    return moved


def track_number(name: str) -> int:
    """Returns the number that stands for a track's name. It depends on nothing else: numbers given in order would tell
    how many tracks a log has later on.
    """
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:7], "big")


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
    """Returns the ego's logged states up to `now`, in its frame at `now`. Nothing of the log after `now` is read: the
    last speeds are one-sided differences.
    """
    known = ego.until(now)
    if not len(known.times) or known.times[-1] < now:  # the log has no pose at `now`, but the frame is one
        pose = np.r_[frame[:3, 3], yaw_of(frame[:3, :3])]
        known = Track(np.r_[known.times, now], np.r_[known.poses, pose[None]])
    times = now - PERIOD * np.arange(PAST, -1, -1, dtype=np.int64)
    speed = np.linalg.norm(known.velocity(times, EGO_SPAN)[:, :2], axis=1)
    return Trajectory(np.c_[seen_from(frame, known.at(times)), speed])


def ego_future(ego: Track, now: int, frame: FloatArray, source: str) -> Trajectory:
    """Returns the ego's future: the kinematic rollout closest to the log, whose controls are free of the log's noise.
    It starts at the speed that the history ends with.

    Raises `SceneError` when the log's poses have a gap there, when it is farther than `CLOSE_M` from a logged position,
    or when its controls are impossible.
    """
    times = future_times(now)
    speeds = np.linalg.norm(ego.velocity(times, EGO_SPAN)[:, :2], axis=1)
    logged = Trajectory(np.c_[seen_from(frame, ego.at(times)), speeds])
    initial = np.array([0.0, 0.0, 0.0, ego_history(ego, now, frame).states[-1, 3]])
    if not np.isfinite([*logged.states.ravel(), *initial]).all():
        raise SceneError(f"{source}: future: the log's poses have a gap of more than {ego.longest_gap / SECOND:g} s")
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


def followed_future(
    ego: Track, now: int, frame: FloatArray, source: str, left_out: MutableMapping[str, int]
) -> Trajectory | None:
    """Returns the ego's future, or None where no kinematic path follows it, which `left_out` then counts."""
    try:
        return ego_future(ego, now, frame, source)
    except SceneError:
        left_out[NO_PATH] = 1
        return None


def agents_of(tracks: Sequence[Track], now: int, frame: FloatArray) -> FloatArray:
    """Returns futures `(n, FUTURE, 3)` of other bodies in the ego frame, NaN once they are gone, or where a log places
    them beyond all maps; see `Surroundings`.
    """
    times = future_times(now)
    agents = np.full((len(tracks), FUTURE, 3), np.nan)
    for agent, track in zip(agents, tracks, strict=True):
        agent[:] = seen_from(frame, track.at(times))
    agents[~(np.abs(agents[..., :2]) <= FARTHEST_MAP).all(axis=-1)] = np.nan
    return agents


def surroundings_of(
    tracks: Sequence[Track],
    drivable: Sequence[FloatArray],
    ego: Track,
    now: int,
    frame: FloatArray,
    absent: Iterable[Body] = (),
) -> Surroundings:
    """Returns what metrics need: the other bodies' futures, the polygons of `drivable` `(k, 3)` near the ego, and as
    the route the ego's own path from its first logged pose to its last. Of the `absent`, which are not annotated at
    `now`, those that come near in the future are the distant.
    """
    areas = (apply(invert(frame), area)[:, :2] for area in drivable)
    near = tuple(area for area in areas if (area.min(axis=0) < MAP_M).all() and (area.max(axis=0) > -MAP_M).all())
    distant, futures = _distant(absent, now, frame)
    return Surroundings(
        agents_of(tracks, now, frame), near, _route(ego, frame), distant=distant, distant_agents=futures
    )


def _distant(absent: Iterable[Body], now: int, frame: FloatArray) -> tuple[Boxes | None, FloatArray | None]:
    """Returns the boxes and futures `(m, FUTURE, 3)` of the bodies that come within `MAP_M` of the ego's current place;
    None where none does."""
    last = now + FUTURE * PERIOD
    logged = [body for body in absent if len(body.track.times) and body.track.times[0] <= last]
    logged = [body for body in logged if body.track.times[-1] > now]
    futures = agents_of([body.track for body in logged], now, frame)
    near = np.asarray((np.hypot(futures[..., 0], futures[..., 1]) < MAP_M).any(axis=1))
    if not near.any():
        return None, None
    values = np.full((len(logged), 9), np.nan)
    values[:, 3:6] = [body.size for body in logged]
    values[:, 2], values[:, 6] = values[:, 5] / 2, 0.0
    return Boxes(values, tuple(body.label for body in logged)).take(near), futures[near]


def _route(ego: Track, frame: FloatArray, spacing: float = 1.0) -> FloatArray | None:
    """Returns the driven path `(k, 2)` with a point every `spacing` metres; None when the ego never moved that far."""
    points = seen_from(frame, ego.poses)[:, :2]
    driven = np.r_[0.0, np.cumsum(np.linalg.norm(np.diff(points, axis=0), axis=1))]
    if driven[-1] < spacing:
        return None
    wanted = np.arange(0.0, driven[-1], spacing)
    return np.stack([np.interp(wanted, driven, points[:, axis]) for axis in (0, 1)], axis=1)
