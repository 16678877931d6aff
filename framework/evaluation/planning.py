"""Measures of predicted trajectories: displacement from the expert, collisions, road departures, comfort.

Pure functions of numpy arrays in the ego frame at the current time. Trajectories are `(..., time, 4)`: x, y, heading
and speed of the rear axle, from one period after the current time on.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import shapely

from framework.evaluation.baselines import TRAJECTORY_BASELINES
from framework.evaluation.slices import SceneMeasures, largest, mean, share_if_any, worst
from framework.scene.check import PLAN_FAULTS, plan_fault, simulation_problems
from framework.scene.comfort import COMFORT_BOUNDS, comfort_quantities
from framework.scene.contact import even_motion, first_contact, overlaps, slowing_motion
from framework.scene.drivable import ROAD_TOLERANCE_M, drivable_surface
from framework.scene.kinematics import EGO, Vehicle, ego_box, ego_footprints
from framework.scene.types import Boxes, FloatArray, Scene, SceneError, Trajectory, road_users

log = logging.getLogger(__name__)

BoolArray = npt.NDArray[np.bool_]

MISS_M = 2.0
"""A larger final displacement (m) is a miss."""
MEASURES = ("ade", "fde", "miss", "min_ade", "collision", "off_road", "comfortable")
"""The measures of a scene that are averaged over scenes."""


def displacements(predicted: FloatArray, expert: FloatArray) -> FloatArray:
    """The distances `(..., time)` (m) between the positions of trajectories `(..., time, 2+)`."""
    distances: FloatArray = np.linalg.norm(predicted[..., :2] - expert[..., :2], axis=-1)
    return distances


def average_displacement(predicted: FloatArray, expert: FloatArray) -> Any:
    """ADE `(...)` (m): the mean displacement over the horizon."""
    return displacements(predicted, expert).mean(axis=-1)


def final_displacement(predicted: FloatArray, expert: FloatArray) -> Any:
    """FDE `(...)` (m): the displacement at the horizon."""
    return displacements(predicted, expert)[..., -1]


def is_miss(predicted: FloatArray, expert: FloatArray, threshold: float = MISS_M) -> Any:
    """Whether `(...)` the final displacement exceeds `threshold` metres."""
    return final_displacement(predicted, expert) > threshold


def min_average_displacement(samples: FloatArray, expert: FloatArray) -> float:
    """minADE_k (m): the smallest ADE among the samples `(k, time, 2+)` of one scene."""
    return float(average_displacement(samples, expert).min())


def collision_steps(states: FloatArray, agents: FloatArray, sizes: FloatArray, vehicle: Vehicle = EGO) -> BoolArray:
    """The steps `(time,)` at which the ego in `states` `(time, 4)` touches any agent `(n, time, 3)` of `sizes` `(n,
    2)`, or has touched it since the step before.

    Between two steps both move on, see `framework.scene.contact`. An agent touches nobody while it is absent (NaN).
    """
    ego = ego_box(states, vehicle)
    boxes = np.concatenate([agents, np.broadcast_to(sizes[:, None], (*agents.shape[:2], 2))], axis=-1)
    hits = overlaps(ego, boxes)
    speeds = np.stack([states[:-1, 3], states[1:, 3]], axis=-1)
    contact = first_contact(slowing_motion(ego[:-1], ego[1:], speeds), even_motion(boxes[:, :-1], boxes[:, 1:]))
    hits[:, 1:] |= np.isfinite(contact)
    return np.asarray(hits.any(axis=0))


def off_road_steps(
    states: FloatArray, drivable: Sequence[FloatArray], vehicle: Vehicle = EGO, tolerance: float = ROAD_TOLERANCE_M
) -> BoolArray:
    """The steps `(time,)` at which the ego's body is not entirely within the union of `drivable` polygons `(k, 2)`,
    grown by `tolerance` (m), or has left it with a corner since the step before.
    """
    surface = shapely.buffer(drivable_surface(drivable), tolerance)
    shapely.prepare(surface)
    bodies = ego_footprints(states, vehicle)
    outside: BoolArray = ~shapely.covers(surface, shapely.polygons(bodies))
    paths = shapely.linestrings(np.stack([bodies[:-1], bodies[1:]], axis=2))
    left = ~shapely.covers(surface, paths).all(axis=1)
    outside[1:] |= left & ~outside[:-1]
    return outside


def is_comfortable(quantities: dict[str, FloatArray]) -> bool:
    """Whether all `comfort_quantities` stay within `COMFORT_BOUNDS` throughout."""
    return all(
        bool(((low <= quantities[name]) & (quantities[name] <= high)).all())
        for name, (low, high) in COMFORT_BOUNDS.items()
    )


def trajectory_measures(
    scene: Scene, predicted: Trajectory, samples: Sequence[Trajectory] = (), vehicle: Vehicle = EGO
) -> dict[str, float]:
    """The measures of one prediction: `ade`, `fde`, `miss`, `min_ade`, `collision`, `off_road`, `comfortable` and
    `max_<quantity>` of each comfort quantity.

    Events are 0 or 1; `max_<quantity>` is the largest magnitude over the horizon. `min_ade` is over `samples` and the
    prediction itself, NaN without samples. Measures that the scene cannot judge (no surroundings, no map) are NaN.
    Raises `SceneError` when history or future is missing, and when a trajectory has another rate or fewer steps than
    the future.
    """
    initial, expert = _ends(scene)
    states = _aligned(scene, predicted)
    candidates = np.stack([states, *(_aligned(scene, sample) for sample in samples)])
    quantities = comfort_quantities(initial, states, predicted.rate_hz)
    measures = {
        "ade": float(average_displacement(states, expert)),
        "fde": float(final_displacement(states, expert)),
        "miss": float(is_miss(states, expert)),
        "min_ade": min_average_displacement(candidates, expert) if samples else np.nan,
        "collision": np.nan,
        "off_road": np.nan,
        "comfortable": float(is_comfortable(quantities)),
    }
    surroundings = scene.surroundings
    if surroundings is not None and scene.boxes is not None:
        measures["collision"] = float(_collides(*road_users(scene), initial, states, vehicle))
    if surroundings is not None and surroundings.drivable:
        path = np.concatenate([initial[None], states])
        measures["off_road"] = float(off_road_steps(path, surroundings.drivable, vehicle)[1:].any())
    return measures | {f"max_{name}": float(np.abs(values).max(initial=0.0)) for name, values in quantities.items()}


def _collides(boxes: Boxes, agents: FloatArray, initial: FloatArray, states: FloatArray, vehicle: Vehicle) -> bool:
    """Whether the ego in `initial` `(4,)`, then `states` `(time, 4)`, touches any of `boxes` `(n)` whose futures are
    `agents` `(n, time, 3)`. Those that overlap the ego at the current time are annotation errors and never count."""
    path = np.concatenate([initial[None], states])
    values = boxes.values
    poses = np.concatenate([values[:, None, [0, 1, 6]], agents[:, : len(states)]], axis=1)
    now = np.concatenate([poses[:, 0], values[:, 3:5]], axis=-1)
    apart = ~overlaps(ego_box(initial, vehicle), now)
    return bool(collision_steps(path, poses[apart], values[apart, 3:5], vehicle).any())


def _ends(scene: Scene) -> tuple[FloatArray, FloatArray]:
    """The current state `(4,)` and the expert's future `(time, 4)`."""
    if scene.history is None or not len(scene.history.states):
        raise SceneError(f"scene {scene.id}: field `history` is missing, so its speed is unknown; leave the scene out")
    if scene.future is None or not len(scene.future.states):
        raise SceneError(
            f"scene {scene.id}: field `future` is missing; a trajectory cannot be judged without the expert's"
        )
    return np.asarray(scene.history.states[-1], dtype=np.float64), np.asarray(scene.future.states, dtype=np.float64)


def _aligned(scene: Scene, predicted: Trajectory) -> FloatArray:
    """The states `(time, 4)` of a prediction at the times of the expert's future."""
    assert scene.future is not None
    steps, rate = len(scene.future.states), scene.future.rate_hz
    if predicted.rate_hz != rate or len(predicted.states) < steps:
        raise SceneError(
            f"scene {scene.id}: the prediction has {len(predicted.states)} states at {predicted.rate_hz:g} Hz, "
            f"the expert's `future` {steps} at {rate:g} Hz; set the action codec's steps and rate to the data's"
        )
    states = np.asarray(predicted.states[:steps], dtype=np.float64)
    if not np.isfinite(states).all():
        raise SceneError(
            f"scene {scene.id}: the predicted trajectory holds NaN or infinity; the codec must refuse such answers"
        )
    return states


class TrajectoryScore(SceneMeasures):
    """`trajectory_measures` and the rate `parse_failure`, over all scenes and each scenario kind.

    An answer that does not parse (None), or whose plan cannot be driven (see `plan_fault`), counts as `parse_failure`
    and as a miss. For the other measures it gets the worst value of the baselines on the same scene, so that it never
    improves a result; a fault counts as `fault/<kind>` too. Rates are means of events;
    `max_<quantity>` is the largest over scenes.

    Args:
        vehicle: the ego whose collisions and road departures count.
    """

    def __init__(self, vehicle: Vehicle = EGO) -> None:
        maxima = {f"max_{name}": largest for name in COMFORT_BOUNDS}
        faults = {f"fault/{kind}": share_if_any for kind in PLAN_FAULTS}
        super().__init__(dict.fromkeys(MEASURES, mean) | maxima | {"parse_failure": mean} | faults)
        self.vehicle = vehicle

    def judge(self, scene: Scene, predicted: Trajectory | None, samples: Sequence[Trajectory] = ()) -> dict[str, float]:
        """The measures of one scene, without adding them; see `trajectory_measures`. Raises `SceneError` for a scene
        that cannot judge them."""
        _, expert = _ends(scene)
        if problems := simulation_problems(scene):
            raise SceneError(f"scene {scene.id}: it cannot judge plans: {'; '.join(problems)}")
        assert scene.future is not None
        rate, count = scene.future.rate_hz, len(expert)

        def fault_of(plan: Trajectory) -> str | None:
            return plan_fault(Trajectory(plan.states[:count], plan.rate_hz), count, rate)

        fault = None if predicted is None else fault_of(predicted)
        if fault:
            log.debug("scene %s: the plan counts as one that does not parse: %s", scene.id, fault)
        samples = [one for one in samples if fault_of(one) is None]
        faults = {f"fault/{kind}": float(kind == fault) for kind in PLAN_FAULTS}
        if predicted is not None and fault is None:
            return trajectory_measures(scene, predicted, samples, self.vehicle) | {"parse_failure": 0.0} | faults
        rows = [trajectory_measures(scene, make(scene), (), self.vehicle) for make in TRAJECTORY_BASELINES.values()]
        return worst(rows, better_high=("comfortable",)) | {"miss": 1.0, "parse_failure": 1.0} | faults
