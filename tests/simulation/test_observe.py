"""What a policy is shown in closed loop: the same world from where the ego has got to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from framework.data.sources.forecasting import Forecasting
from framework.scene.check import check_scene
from framework.scene.kinematics import unicycle_rollout
from framework.scene.types import Scene, SceneError, Trajectory
from framework.scene.world.generate import generate_scene
from framework.scene.world.rig import TINY_RIG
from framework.simulation.episode import drive, follow_plans
from framework.simulation.measures import no_fault, on_road, progress
from framework.simulation.observe import observe, policy_planner
from framework.simulation.scenes import batch_scenes
from framework.simulation.simulator import Moment, Simulator
from tests.simulation.scenes import RATE, driven, make_scene, moving


def moments_of(scene: Scene, states: np.ndarray) -> list[Moment]:  # type: ignore[type-arg]
    batch, simulator = batch_scenes([scene], torch.float64), Simulator()
    moments = [simulator.start(batch)]
    for state in states:
        moments.append(simulator.place(batch, moments[-1], torch.from_numpy(state)[None], torch.zeros(1).double()))
    return moments


def test_at_the_current_time_it_is_the_scene_itself() -> None:
    scene = make_scene([moving("car", 30.0, 0.0)])
    assert observe(scene, moments_of(scene, np.zeros((0, 4))), 0, RATE, None) is scene


def test_everything_moves_into_the_egos_new_frame() -> None:
    ahead, gone = moving("car", 30.0, 3.0, speed=4.0), moving("pedestrian", 9.0, 4.0)
    scene = make_scene([ahead, gone], red_lights=np.array([[50.0, -5.0, 50.0, 5.0, 1.0, np.inf]]))
    assert scene.surroundings is not None
    scene.surroundings.agents[1, 3:] = np.nan
    turned = np.array([[2.0, 0.0, 0.0, 8.0], [4.0, 0.0, 0.0, 8.0], [6.0, 0.5, 0.0, 8.0], [8.0, 1.0, np.pi / 2, 7.0]])
    later = observe(scene, moments_of(scene, turned), 0, RATE, None)
    assert check_scene(later) == []
    assert later.boxes is not None
    assert later.boxes.labels == ("car",)
    # The car is at (34, 3), seen from (8, 1) looking along y.
    np.testing.assert_allclose(later.boxes.values[0, [0, 1, 6]], [2.0, -26.0, -np.pi / 2], atol=1e-9)
    np.testing.assert_allclose(later.boxes.values[0, 7:], [0.0, -4.0], atol=1e-9)
    assert later.history is not None
    assert later.history.states.shape == (7, 4)
    np.testing.assert_allclose(later.history.states[-2:], [[-0.5, 2.0, -np.pi / 2, 8.0], [0, 0, 0, 7.0]], atol=1e-9)
    np.testing.assert_allclose(later.history.states[0], [-1.0, 12.0, -np.pi / 2, 8.0], atol=1e-9)
    around = later.surroundings
    assert around is not None
    assert around.route is not None
    assert around.red_lights is not None
    np.testing.assert_allclose(around.route, [[-1.0, 58.0], [-1.0, -192.0]], atol=1e-9)
    np.testing.assert_allclose(around.red_lights, [[-6.0, -42.0, 4.0, -42.0, 0.0, np.inf]], atol=1e-9)


@pytest.mark.parametrize("kind", ["curve", "intersection", "flagger"])
def test_the_built_in_world_is_sensed_again_from_where_the_ego_is(kind: str) -> None:
    scene = generate_scene(3, kind)
    assert scene.future is not None
    moments = moments_of(scene, scene.future.states[:8])
    later = observe(scene, moments, 0, RATE, TINY_RIG)
    assert check_scene(later) == []
    assert [camera.name for camera in later.cameras] == [camera.name for camera in scene.cameras]
    assert later.cameras[0].frames != scene.cameras[0].frames
    assert later.lidar is not None
    assert later.perception is not None
    bare = observe(scene, moments, 0, RATE, None)
    assert bare.surroundings is not None
    assert later.surroundings is not None
    # The map is cropped around the ego: along the way ahead both are the same road.
    for one, other in ((bare, later), (later, bare)):
        batch = batch_scenes([_with_future(one)]), batch_scenes([_with_future(other)])
        episodes = [follow_plans(Simulator(), each, batch[0].expert) for each in batch]
        assert torch.equal(episodes[0].off_road, episodes[1].off_road)
    assert (later.surroundings.red_lights is None) == (kind != "flagger")
    if later.surroundings.red_lights is not None and bare.surroundings.red_lights is not None:
        np.testing.assert_allclose(later.surroundings.red_lights[:, :4], bare.surroundings.red_lights[:, :4], atol=1e-5)


def test_what_a_camera_sees_depends_on_no_other() -> None:
    scene = generate_scene(3, "curve")
    assert scene.future is not None
    moments = moments_of(scene, scene.future.states[:8])
    whole = observe(scene, moments, 0, RATE, TINY_RIG)
    alone = observe(scene, moments, 0, RATE, TINY_RIG.shown(["front"]))
    assert [camera.frames for camera in alone.cameras] == [whole.cameras[0].frames]
    assert whole.lidar is not None
    assert alone.lidar is not None
    np.testing.assert_array_equal(alone.lidar.points, whole.lidar.points)


def test_velocities_are_turned_wherever_the_ego_is() -> None:
    """A position is no part of them: added and taken off again, it would take their digits with it."""
    scene = make_scene([moving("car", 30.0, 3.0, speed=4.3)])
    far = np.array([[1e12, -1e12, np.pi / 2, 8.0]])
    later = observe(scene, moments_of(scene, far), 0, RATE, None)
    assert later.boxes is not None
    np.testing.assert_allclose(later.boxes.values[0, 7:], [0.0, -4.3], atol=1e-9)


def _with_future(scene: Scene) -> Scene:
    """A later scene that can be simulated on: the ego goes straight, the others stay."""
    assert scene.boxes is not None
    assert scene.surroundings is not None
    assert scene.history is not None
    agents = np.repeat(scene.boxes.values[:, None, [0, 1, 6]], 20, axis=1)
    future = Trajectory(driven(float(scene.history.states[-1, 3]) / 2), RATE)
    return replace(scene, future=future, surroundings=replace(scene.surroundings, agents=agents))


def test_a_policy_that_follows_the_lane_drives_it_to_the_end() -> None:
    scenes = [generate_scene(seed, "curve", rig=None) for seed in range(6)]

    def pursue(seen: Sequence[Scene]) -> list[Trajectory]:
        plans = []
        for scene in seen:
            assert scene.surroundings is not None
            assert scene.surroundings.route is not None
            assert scene.history is not None
            route, speed = scene.surroundings.route, float(scene.history.states[-1, 3])
            reach = np.hypot(*route.T)
            target = route[(route[:, 0] > 0) & (reach > max(4.0, 0.8 * speed))][0]
            curvature = 2 * target[1] / (target @ target)
            controls = np.tile([0.0, curvature], (8, 1))
            plans.append(Trajectory(unicycle_rollout(np.array([0, 0, 0, speed]), controls, 1 / RATE), RATE))
        return plans

    batch = batch_scenes(scenes)
    closed = drive(Simulator(), batch, policy_planner(scenes, pursue, None), 20, replan_every=2)
    opened = drive(Simulator(), batch, lambda moments, batch: torch.zeros(6, 20, 2), 20, replan_every=20)
    assert on_road(closed).mean() == 1.0
    assert (on_road(opened) * no_fault(opened)).mean() < 0.8  # two of them meet somebody who was far away at first
    assert progress(closed).min() > 0.9
    assert no_fault(closed).mean() > 0.5


def test_an_answer_that_does_not_parse_brakes() -> None:
    scenes = [make_scene(), make_scene()]

    def half(seen: Sequence[Scene]) -> list[Trajectory | None]:
        assert seen[0].history is not None
        return [Trajectory(driven(float(seen[0].history.states[-1, 3])), RATE), None]

    planner = policy_planner(scenes, half, None)
    episodes = drive(Simulator(), batch_scenes(scenes), planner, 12, replan_every=4)
    assert episodes.ego[:, -1, 3].tolist() == pytest.approx([8.0, 0.0])


def test_plans_at_another_rate_or_too_short_brake() -> None:
    scenes = [make_scene()] * 3
    plans: list[Trajectory | None] = [
        Trajectory(driven(8.0), 10.0),
        Trajectory(driven(8.0)[:2]),
        Trajectory(driven(8.0)),
    ]
    episodes = drive(Simulator(), batch_scenes(scenes), policy_planner(scenes, lambda _: plans, None, 4), 4, 4)
    assert episodes.ego[:, -1, 3].tolist() == pytest.approx([5.0, 5.0, 8.0])


def test_recordings_are_driven_without_sensors_alone(recordings: Path) -> None:
    (log,) = Forecasting().find_logs(str(recordings))
    scene = Forecasting().read_scene(log.frames[-1])
    assert scene.future is not None
    moments = moments_of(scene, scene.future.states[:4])
    assert check_scene(observe(scene, moments, 0, RATE, None)) == []
    with pytest.raises(SceneError, match="only scenes of the built-in world"):
        observe(scene, moments, 0, RATE, TINY_RIG)
