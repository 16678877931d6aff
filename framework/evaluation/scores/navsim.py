"""NAVSIM's scores of a tracked plan: comfort, lane keeping, direction, progress; PDMS (v1) and EPDMS (v2) of all parts.

Source: navsim (commit 0a380a9), `pdm_planner/scoring/{pdm_scorer,pdm_comfort_metrics,scene_aggregator}.py`,
`evaluate/pdm_score.py`, `planning/script/run_pdm_score.py`. States are those of `framework.evaluation.scores.tracking`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from scipy.signal import savgol_filter

from framework.evaluation.scores.tracking import DT, PACIFICA
from framework.scene.kinematics import Vehicle
from framework.scene.types import FloatArray

BoolArray = npt.NDArray[np.bool_]

BOUNDS = {
    "longitudinal_acceleration": (-4.05, 2.40),
    "lateral_acceleration": (-4.89, 4.89),
    "jerk": (-8.37, 8.37),
    "longitudinal_jerk": (-4.13, 4.13),
    "yaw_acceleration": (-1.93, 1.93),
    "yaw_rate": (-0.95, 0.95),
}
"""Exclusive bounds of a comfortable drive, in m/s^2, m/s^3, rad/s^2 and rad/s."""
LARGEST_CHANGE = {"acceleration": 0.7, "jerk": 0.5, "yaw_rate": 0.1, "yaw_acceleration": 0.1}
"""RMS by which two plans of neighbouring moments may differ in comfort."""
MULTIPLIERS = ("no_collision", "drivable_area", "driving_direction", "traffic_light")
"""Parts of EPDMS that are multiplied: NC, DAC, DDC, TLC."""
WEIGHTS = {"progress": 5.0, "time_to_collision": 5.0, "lane_keeping": 2.0, "history_comfort": 2.0,
           "extended_comfort": 2.0}  # fmt: skip
"""Parts of EPDMS that are averaged, with their weights: EP, TTC, LK, HC, EC."""
WEIGHTS_V1 = {"progress": 5.0, "time_to_collision": 5.0, "history_comfort": 2.0}
"""Those of PDMS."""
MULTIPLIERS_V1 = ("no_collision", "drivable_area")
UNFILTERED = ("extended_comfort",)
"""Parts that the human filter leaves as they are."""
KEEPING_M, KEEPING_S = 0.5, 2.0
"""More than this far (m) off the centre line for so long (s) is no lane keeping."""
ONCOMING_M = (2.0, 6.0)
"""Ways (m) in oncoming lanes within `ONCOMING_S` from which the driving direction is half, and not, kept."""
ONCOMING_S = 1.0
LEAST_PROGRESS_M = 5.0
"""Where nobody advances more (m), progress is 1."""
SIGMA_SQUARED = 0.1
"""Variance (m^2) of the weights of second-stage scenes."""


def history_comfort(states: FloatArray, past: FloatArray | None = None, vehicle: Vehicle = PACIFICA) -> BoolArray:
    """Whether each of `BOUNDS` holds `(b, 6)` over `states` `(b, n, 8)`, behind the human's `past` `(m, 8)`."""
    if past is not None:
        states = np.concatenate([np.broadcast_to(past, (len(states), *past.shape)), states], axis=1)
    quantities = comfort_quantities(states, vehicle)
    within = [(low < quantities[name]) & (quantities[name] < high) for name, (low, high) in BOUNDS.items()]
    return np.stack([each.all(axis=1) for each in within], axis=1)


def comfort_quantities(states: FloatArray, vehicle: Vehicle = PACIFICA) -> dict[str, FloatArray]:
    """The quantities of `BOUNDS`, each `(b, n)`: accelerations smoothed, and derivatives fitted, by Savitzky and Golay.

    The longitudinal acceleration is shifted to the body's centre as NAVSIM shifts it; a bicycle's lateral acceleration
    is 0 there.
    """
    acceleration, yaw_rate, turning = states[..., 4], states[..., 6], states[..., 7]
    longitudinal = _smoothed(acceleration + vehicle.centre * (yaw_rate**2 + turning))
    return {
        "longitudinal_acceleration": longitudinal,
        "lateral_acceleration": np.zeros_like(acceleration),
        "jerk": _derivative(_smoothed(np.abs(acceleration)), 15),
        "longitudinal_jerk": _derivative(longitudinal, 15),
        "yaw_acceleration": _derivative(_unwrapped(states), 5, order=3, times=2),
        "yaw_rate": _derivative(_unwrapped(states), 5),
    }


def extended_comfort(now: FloatArray, before: FloatArray, interval_s: float = 0.5) -> BoolArray:
    """Whether `(b,)` a plan differs from the one of `interval_s` before by no more than `LARGEST_CHANGE`, over the time
    that both cover. Both are tracked states `(b, n, 8)`.
    """
    shift = round(interval_s / DT)
    differences = []
    for name, bound in LARGEST_CHANGE.items():
        one, other = (_comfort(states)[name] for states in (now[:, :-shift], before[:, shift:]))
        differences.append(np.sqrt(((one - other) ** 2).mean(axis=1)) <= bound)
    return np.logical_and.reduce(differences)


def lane_keeping(deviation: FloatArray, in_intersection: BoolArray) -> FloatArray:
    """LK `(b,)`: 0 where the centre is more than `KEEPING_M` off the centre line for `KEEPING_S` on end, else 1.

    Args:
        deviation: Distances (m) from the centre line, `(b, n)`.
        in_intersection: Steps that neither count nor end a series, `(b, n)`.
    """
    series, longest = np.zeros(len(deviation)), np.zeros(len(deviation))
    for step in range(deviation.shape[1]):
        off = ~(deviation[:, step] <= KEEPING_M)  # NaN is off the line
        series = np.where(in_intersection[:, step], series, np.where(off, series + 1, 0))
        longest = np.maximum(longest, series)
    return (longest < np.ceil(KEEPING_S / DT)).astype(np.float64)


def driving_direction(centres: FloatArray, oncoming: BoolArray) -> FloatArray:
    """DDC `(b,)`: 1, 0.5 or 0 by the way in oncoming lanes.

    Args:
        centres: The body's centres (m), `(b, n, 2)`.
        oncoming: Whether they are in no lane of the route, nor in an intersection, `(b, n)`.
    """
    ways = np.zeros(oncoming.shape)
    ways[:, 1:] = np.hypot(*np.moveaxis(np.diff(centres, axis=1), -1, 0))
    driven = np.cumsum(np.where(oncoming, ways, 0.0), axis=1)
    horizon = round(ONCOMING_S / DT)
    before = np.concatenate([np.zeros((len(driven), horizon + 1)), driven], axis=1)[:, : driven.shape[1]]
    most = (driven - before).max(axis=1)
    return np.select([most < ONCOMING_M[0], most < ONCOMING_M[1]], [1.0, 0.5], 0.0)


def ego_progress(agent_m: float, agent_multiplier: float, planner_m: float, planner_multiplier: float) -> float:
    """EP: the agent's advance along the centre line, as a share of the best of its own and the PDM planner's.

    Args:
        agent_m: The agent's advance (m).
        agent_multiplier: The product of the agent's multipliers.
        planner_m: The planner's advance (m).
        planner_multiplier: The product of the planner's multipliers.
    """
    agent, planner = max(agent_m, 0.0) * agent_multiplier, max(planner_m, 0.0) * planner_multiplier
    best = max(agent, planner)
    return 1.0 if best <= LEAST_PROGRESS_M else min(max(agent / best, 0.0), 1.0)


def epdms(parts: Mapping[str, float]) -> float:
    """EPDMS of the parts, NC DAC DDC TLC (5 EP + 5 TTC + 2 LK + 2 HC + 2 EC) / 16. Raises `KeyError` without one."""
    return _score(parts, MULTIPLIERS, WEIGHTS)


def pdms(parts: Mapping[str, float]) -> float:
    """PDMS of the parts, NC DAC (5 EP + 5 TTC + 2 C) / 12; C is the history comfort of v1, without a history."""
    return _score(parts, MULTIPLIERS_V1, WEIGHTS_V1)


def human_filtered(agent: Mapping[str, float], human: Mapping[str, float]) -> dict[str, float]:
    """The agent's parts where a human's part that is exactly 0 makes the agent's 1: nobody is asked for more than the
    recording shows. Of original scenes only.
    """
    lenient = {name for name, value in human.items() if value == 0.0 and name not in UNFILTERED}
    return {name: 1.0 if name in lenient else value for name, value in agent.items()}


def second_stage_weights(end: FloatArray, starts: FloatArray) -> FloatArray:
    """Weights `(k,)`, of sum 1, of the second stage's scenes by the distance of their `starts` `(k, 2)` from the `end`
    `(2,)` of the first stage's plan; even where all are far away.
    """
    weights = np.exp(-((starts - end) ** 2).sum(axis=1) / (2 * SIGMA_SQUARED))
    total = weights.sum()
    if np.isclose(total, 0.0) or np.isnan(total):
        return np.full(len(starts), 1.0 / len(starts))
    return weights / total


def two_stage_score(first: Sequence[float], second: Sequence[FloatArray], weights: Sequence[FloatArray]) -> float:
    """The score of a scene of two stages: the mean over its moments (now, and half a second before) of the first
    stage's score times the weighted second stage's.

    Args:
        first: By moment the first stage's score.
        second: By moment the scores of the second stage's scenes.
        weights: By moment their weights.
    """
    pairs = zip(first, second, weights, strict=True)
    return float(np.mean([one * float((scores * of).sum() / of.sum()) for one, scores, of in pairs]))


def _score(parts: Mapping[str, float], multipliers: Sequence[str], weights: Mapping[str, float]) -> float:
    weighted = sum(weight * parts[name] for name, weight in weights.items()) / sum(weights.values())
    return float(np.prod([parts[name] for name in multipliers]) * weighted)


def _comfort(states: FloatArray) -> dict[str, FloatArray]:
    """The quantities of `LARGEST_CHANGE`."""
    magnitude = _smoothed(np.abs(states[..., 4]))
    return {
        "acceleration": magnitude,
        "jerk": _derivative(magnitude, 15),
        "yaw_rate": _derivative(_unwrapped(states), 5),
        "yaw_acceleration": _derivative(_unwrapped(states), 5, times=2),
    }


def _smoothed(values: FloatArray) -> FloatArray:
    return np.round(savgol_filter(values, polyorder=2, window_length=min(8, values.shape[-1]), axis=-1), 8)


def _derivative(values: FloatArray, window: int, order: int = 2, times: int = 1) -> FloatArray:
    window = min(window, values.shape[-1])
    return np.round(savgol_filter(values, polyorder=order, window_length=window, deriv=times, delta=DT, axis=-1), 8)


def _unwrapped(states: FloatArray) -> FloatArray:
    return np.unwrap(states[..., 2], axis=-1)
