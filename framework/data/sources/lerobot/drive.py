"""The ego's motion in the rows of an episode, by a declared mapping of columns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from framework.data.sources.lerobot.layout import INFO, Episode, Feature, Layout, read_rows
from framework.data.sources.tracks import FUTURE, LONGEST_GAP, PAST, SECOND, Track, ego_history
from framework.scene.frames import wrap_angle
from framework.scene.kinematics import unicycle_rollout
from framework.scene.types import HORIZON_S, RATE_HZ, FloatArray, SceneError, Trajectory

ROLES = ("x", "y", "heading", "speed", "acceleration", "curvature", "history", "plan")
"""What a column can be: a number of the ego's state, a control, or a whole trajectory."""
TIME = "timestamp"
"""The column of the rows' times (s) from the start of their episode."""
WHOLE = {"history": 4 * (PAST + 1), "plan": 4 * FUTURE}
"""Numbers of the roles that are trajectories: x, y, heading and speed of each state, at 4 Hz, in the ego frame."""


@dataclass(frozen=True, slots=True)
class Columns:
    """Where a dataset has each role."""

    places: Mapping[str, tuple[str, int]]
    """Feature and index in its vector, by role; -1 for the whole vector."""
    absent: Mapping[str, str]
    """The columns of roles that the dataset has not, by role."""

    @property
    def features(self) -> tuple[str, ...]:
        """The features that are read."""
        return tuple(sorted({feature for feature, _ in self.places.values()}))


@dataclass(frozen=True, slots=True)
class Drive:
    """The ego's motion in an episode of `n` rows."""

    track: Track | None
    """Poses in the episode's frame; None where only whole trajectories are known."""
    controls: FloatArray | None
    """`(n, 2)`: acceleration (m/s^2) and curvature (1/m) from each row to the next; None where there are none."""
    speeds: FloatArray | None
    """`(n,)` (m/s); None where they follow from the poses."""
    rate_hz: float
    """Rows per second."""
    whole: Mapping[str, FloatArray]
    """The roles that are trajectories, each `(n, time, 4)`."""

    def history(self, row: int, frame: FloatArray) -> Trajectory:
        """Returns the states up to a row, whose pose is `frame` `(4, 4)`; the track must be known."""
        assert self.track is not None
        history = ego_history(self.track, int(self.track.times[row]), frame)
        if self.speeds is not None:
            times = np.arange(-PAST, 1) / RATE_HZ * self.rate_hz + row
            history.states[:, 3] = np.abs(np.interp(times, np.arange(row + 1), self.speeds[: row + 1]))
        return history

    def rollout(self, row: int, speed: float) -> Trajectory:
        """Returns what the controls from `row` on lead to from `speed` (m/s), at the scene's rate. Raises `SceneError`
        where the episode ends within the horizon.
        """
        assert self.controls is not None
        steps = round(HORIZON_S * self.rate_hz)
        chosen = self.controls[row : row + steps]
        if len(chosen) < steps:
            raise SceneError(f"row {row}: {len(chosen)} rows of controls follow, {steps} are needed; drop the row")
        initial = np.array([0.0, 0.0, 0.0, speed])
        states = np.r_[initial[None], unicycle_rollout(initial, chosen, 1.0 / self.rate_hz)]
        states[:, 2] = np.unwrap(states[:, 2])
        known, wanted = np.arange(steps + 1) / self.rate_hz, np.arange(1, FUTURE + 1) / RATE_HZ
        sampled = np.stack([np.interp(wanted, known, states[:, axis]) for axis in range(4)], axis=1)
        sampled[:, 2] = wrap_angle(sampled[:, 2])
        return Trajectory(sampled)


def find_columns(layout: Layout, mapping: Mapping[str, str | None]) -> Columns:
    """Returns where a dataset has the roles of a mapping `{role: feature/name}`; the name is one of the feature's
    names or an index, and trajectories have none.

    Raises `SceneError` for an unknown role or name, and where the ego's motion does not follow from what there is.
    """
    places: dict[str, tuple[str, int]] = {}
    absent: dict[str, str] = {}
    for role, column in mapping.items():
        if role not in ROLES:
            raise SceneError(f"columns.{role}: is no role; use {', '.join(ROLES)}")
        if column is None:
            continue
        name, _, number = column.partition("/")
        feature = layout.features.get(name)
        if feature is None:
            absent[role] = column
            continue
        places[role] = name, _index(feature, role, column, number)
    motion = "speed" in places and ("heading" in places or "curvature" in places)
    if not (motion or {"x", "y", "heading"} <= places.keys() or WHOLE.keys() <= places.keys()):
        there = ", ".join(f"{name} ({', '.join(value.names)})" for name, value in layout.features.items())
        raise SceneError(
            f"{layout.root / INFO}: features: no ego motion by columns {dict(mapping)}; map x, y and heading, or speed "
            f"and heading or curvature, to what there is: {there}"
        )
    return Columns(places, absent)


def _index(feature: Feature, role: str, column: str, number: str) -> int:
    size = int(np.prod(feature.shape))
    if role in WHOLE:
        if size != WHOLE[role] or number:
            raise SceneError(f"columns.{role}: {column} has {size} numbers, a {role} {WHOLE[role]}; name the feature")
        return -1
    if number in feature.names:
        return feature.names.index(number)
    if number.isdecimal() and int(number) < size:
        return int(number)
    raise SceneError(f"columns.{role}: {column}: is none of its {size} numbers ({', '.join(feature.names)}); map one")


def read_drive(
    layout: Layout, episode: Episode, columns: Columns, factors: Mapping[str, float], offsets: Mapping[str, float]
) -> Drive:
    """Returns the motion of an episode. Factors, then offsets, take a role's numbers to SI units. Raises `SceneError`
    where its rows do not follow each other at the dataset's rate.
    """
    rows = read_rows(episode.data, episode.index, episode.length, (*columns.features, TIME))
    _check_times(rows[TIME][:, 0], layout.rate_hz, f"{episode.data}: {TIME}: episode {episode.index}")
    values = {
        role: rows[feature][:, index] * factors.get(role, 1.0) + offsets.get(role, 0.0)
        for role, (feature, index) in columns.places.items()
        if index >= 0
    }
    whole = {
        role: rows[feature].reshape(episode.length, -1, 4)
        for role, (feature, index) in columns.places.items()
        if index < 0
    }
    controls = None
    if {"acceleration", "curvature"} <= values.keys():
        controls = np.stack([values["acceleration"], values["curvature"]], axis=1)
    return Drive(_track(values, layout.rate_hz), controls, values.get("speed"), layout.rate_hz, whole)


def _check_times(times: FloatArray, rate_hz: float, source: str) -> None:
    due = times[0] + np.arange(len(times)) / rate_hz
    wrong = np.flatnonzero(~(np.abs(times - due) < 0.5 / rate_hz))
    if len(wrong):
        row = int(wrong[0])
        raise SceneError(
            f"{source}: row {row} is at {times[row]:g} s, not at {due[row]:g} s: rows are missing or out of order; "
            "write the dataset again at a steady rate"
        )


def _track(values: Mapping[str, FloatArray], rate_hz: float) -> Track | None:
    """Returns the poses: those of the rows, else those that speed and heading, or curvature, lead to."""
    heading, speed = values.get("heading"), values.get("speed")
    if speed is not None:
        step = np.r_[0.0, (speed[1:] + speed[:-1]) / 2 / rate_hz]
        if heading is None and "curvature" in values:
            heading = np.cumsum(step * np.r_[0.0, values["curvature"][:-1]])
    if heading is None:
        return None
    if {"x", "y"} <= values.keys():
        x, y = values["x"], values["y"]
    elif speed is None:
        return None
    else:
        middle = np.r_[heading[0], heading[:-1] + wrap_angle(np.diff(heading)) / 2]
        x, y = np.cumsum(step * np.cos(middle)), np.cumsum(step * np.sin(middle))
    times = np.round(np.arange(len(heading)) * (SECOND / rate_hz)).astype(np.int64)
    poses = np.stack([x, y, np.zeros(len(heading)), wrap_angle(heading)], axis=1)
    return Track(times, poses, max(LONGEST_GAP, round(1.01 * SECOND / rate_hz)))
