"""Observations: a later moment of an episode as a scene, for policies that read scenes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from framework.scene.check import plan_fault
from framework.scene.frames import wrap_angle
from framework.scene.kinematics import unicycle_controls
from framework.scene.types import Boxes, FloatArray, Scene, SceneError, Surroundings, Trajectory, road_users
from framework.scene.world.generate import DATASET, look_again
from framework.scene.world.rig import Rig
from framework.simulation.episode import FALLBACK_BRAKING, Planner
from framework.simulation.scenes import SceneBatch
from framework.simulation.simulator import Moment

ANNOTATED_M = 50.0
"""Somebody who was not annotated at first is from this distance (m) on."""

Policy = Callable[[Sequence[Scene]], Sequence[Trajectory | None]]
"""Maps scenes to plans, each in its scene's ego frame; None for an answer that does not parse."""


def policy_planner(scenes: Sequence[Scene], policy: Policy, rig: Rig | None, periods: int = 1) -> Planner:
    """A planner that asks `policy` for a plan of each of `scenes` as it is now.

    Scenes of the built-in world are observed through `rig`, others without sensors (see `observe`). Plans become the
    exact controls of a unicycle. An ego whose answer does not parse, or spells a plan that cannot be driven (see
    `replan_fault`), keeps its curvature and brakes by `FALLBACK_BRAKING`.

    Args:
        scenes: the scenes at their start.
        policy: gives the plans.
        rig: cameras of the built-in world.
        periods: periods that each plan must cover.
    """

    def plan(moments: Sequence[Moment], batch: SceneBatch) -> Tensor:
        plans = policy(
            [observe(scene, moments, row, batch.rate_hz, rig_of(scene, rig)) for row, scene in enumerate(scenes)]
        )
        plans = [None if one is None or replan_fault(one, periods, batch.rate_hz) else one for one in plans]
        lengths = [len(one.states) for one in plans if one is not None]
        controls = np.zeros((len(scenes), min(lengths, default=batch.steps), 2))
        for row, one in enumerate(plans):
            controls[row] = controls_of(one, moments[-1], row, batch.dt, controls.shape[1])
        return torch.from_numpy(controls).to(batch.initial)

    return plan


def rig_of(scene: Scene, rig: Rig | None) -> Rig | None:
    """The cameras through which later moments of `scene` are seen: `rig` in the built-in world, else none."""
    return rig if scene.provenance.get("dataset") == DATASET else None


def controls_of(plan: Trajectory | None, now: Moment, row: int, dt: float, periods: int) -> FloatArray:
    """The controls `(periods, 2)` of a unicycle that follows `plan` from where the ego `row` is now. Without a plan it
    keeps its curvature and brakes by `FALLBACK_BRAKING`.
    """
    if plan is None:
        return np.tile([-FALLBACK_BRAKING, float(now.curvature[row])], (periods, 1))
    initial = np.array([0.0, 0.0, 0.0, float(now.ego[row, 3])])
    controls: FloatArray = unicycle_controls(initial, plan.states, dt)[:periods]
    return controls


def replan_fault(plan: Trajectory, periods: int, rate_hz: float) -> str | None:
    """Why a plan cannot be driven for `periods` at `rate_hz`, one of `PLAN_FAULTS`; it may be longer. None where it can
    be."""
    return plan_fault(plan, max(len(plan.states), periods), rate_hz)


def observe(scene: Scene, moments: Sequence[Moment], row: int, rate_hz: float, rig: Rig | None) -> Scene:
    """`scene`, the batch's `row`, at the last of `moments`: boxes, history and surroundings in the ego's frame there.

    At the current time this is `scene` itself. Later its sensors are simulated through `rig`, for scenes of the
    built-in world only; None leaves out all sensors and perception. Of the agents that the scene does not annotate, the
    distant appear once they are near. Raises `SceneError` for a scene that cannot be simulated again, and for a history
    at another rate.
    """
    now = moments[-1]
    if now.step == 0:
        return scene
    assert scene.boxes is not None
    pose = now.ego[row, :3].cpu().double().numpy()
    later = Scene(
        id=f"{scene.id}@{now.step}",
        kind=scene.kind,
        boxes=_boxes(scene, now, row, pose),
        history=_history(scene, moments, row, pose, rate_hz),
        command=scene.command,
        provenance=scene.provenance,
    )
    if rig is not None:
        return look_again(later, pose, float(now.curvature[row] * now.ego[row, 3]), rig)
    assert later.boxes is not None
    return dataclasses.replace(later, surroundings=_surroundings(scene, len(later.boxes), pose, now.step / rate_hz))


def _boxes(scene: Scene, now: Moment, row: int, pose: FloatArray) -> Boxes:
    """The boxes of the agents that are present: those annotated in the scene, and the distant who have come near."""
    assert scene.boxes is not None
    boxes, _ = road_users(scene)
    seen = now.agents.present[row, : len(boxes)].cpu().numpy()
    away = np.hypot(*(now.agents.poses[row, : len(boxes), :2].cpu().double().numpy() - pose[:2]).T)
    seen[len(scene.boxes) :] &= away[len(scene.boxes) :] <= ANNOTATED_M
    present = np.flatnonzero(seen)
    values = np.array(boxes.values[present], dtype=np.float64)
    poses, velocities = (
        tensor[row, : len(boxes)].cpu().double().numpy()[present]
        for tensor in (now.agents.poses, now.agents.velocities)
    )
    values[:, :2], values[:, 6] = _to_frame(poses[:, :2], pose), wrap_angle(poses[:, 2] - pose[2])
    values[:, 7:9] = _rotated(velocities, pose[2])
    ids = boxes.track_ids if boxes.track_ids is None else boxes.track_ids[present]
    return Boxes(values, tuple(boxes.labels[k] for k in present), track_ids=ids)


def _history(scene: Scene, moments: Sequence[Moment], row: int, pose: FloatArray, rate_hz: float) -> Trajectory:
    """As many states as the scene's own history has, up to the present one."""
    assert scene.history is not None
    if scene.history.rate_hz != rate_hz:
        raise SceneError(
            f"scene {scene.id}: field `history` is at {scene.history.rate_hz:g} Hz, `future` at {rate_hz:g} Hz; "
            "convert both at one rate to drive in closed loop"
        )
    driven = torch.stack([moment.ego[row] for moment in moments[1:]]).cpu().double().numpy()
    states = np.concatenate([scene.history.states, driven])[-len(scene.history.states) :]
    states[:, :2], states[:, 2] = _to_frame(states[:, :2], pose), wrap_angle(states[:, 2] - pose[2])
    states[-1, :3] = 0.0
    return Trajectory(states, rate_hz)


def _surroundings(scene: Scene, boxes: int, pose: FloatArray, time: float) -> Surroundings:
    assert scene.surroundings is not None
    around = scene.surroundings
    lights = None if around.red_lights is None else np.array(around.red_lights)
    if lights is not None:
        lights[:, :4] = _to_frame(lights[:, :4].reshape(-1, 2), pose).reshape(-1, 4)
        lights[:, 4:] -= time
    return Surroundings(
        agents=np.zeros((boxes, 0, 3)),
        drivable=tuple(_to_frame(ring, pose) for ring in around.drivable),
        route=None if around.route is None else _to_frame(around.route, pose),
        speed_limit=around.speed_limit,
        red_lights=lights,
    )


def _to_frame(points: FloatArray, pose: FloatArray) -> FloatArray:
    """Points `(k, 2)` in the frame at `pose` (x, y, heading)."""
    return _rotated(points - pose[:2], pose[2])


def _rotated(vectors: FloatArray, heading: float) -> FloatArray:
    """Vectors `(k, 2)` in a frame turned by `heading` (rad)."""
    cos, sin = np.cos(heading), np.sin(heading)
    rotated: FloatArray = vectors @ np.array([[cos, -sin], [sin, cos]])
    return rotated
