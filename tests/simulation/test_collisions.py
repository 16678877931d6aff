"""Collisions between samples, and who ran into whom at the first contact."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from framework.scene.contact import Motion
from framework.scene.kinematics import EGO
from framework.scene.types import Scene
from framework.scene.world.generate import generate_scene
from framework.scene.world.scenarios import KINDS
from framework.simulation.episode import Episodes, drive, follow_plans, record_episodes
from framework.simulation.scenes import batch_scenes
from framework.simulation.simulator import Simulator
from tests.simulation.scenes import SIZES, STEPS, driven, make_scene, moving, trajectory
from tools.collisions import Crossing, brute_force, compare, scene_of


def expert_drives(scenes: list[Scene]) -> Episodes:
    batch = batch_scenes(scenes)
    return follow_plans(Simulator(), batch, batch.expert)


@pytest.mark.fault("what happens between two samples")
@pytest.mark.parametrize("start", np.arange(40.0, 52.5, 1.25))
def test_a_frontal_crash_is_seen_whenever_it_falls_between_the_samples(start: float) -> None:
    # 25 m/s each: 12.5 m closer a period, while the bodies are 9.1 m long together.
    scene = make_scene([moving("car", start, 0.0, math.pi, speed=25.0)], speed=25.0)
    episodes = expert_drives([scene])
    assert episodes.fault.tolist() == [1.0]
    meeting = (start - SIZES["car"][0] / 2 - EGO.front) / 50.0
    assert int(episodes.underway.sum()) == math.ceil(meeting * 4 - 1e-6)


@pytest.mark.fault("what happens between two samples")
@pytest.mark.parametrize("x", np.arange(20.0, 22.5, 0.25))
def test_a_pedestrian_before_the_bumper_is_the_egos_fault_at_any_phase(x: float) -> None:
    arrival = (x - 0.3 - EGO.front) / 10.0
    walker = moving("pedestrian", x, -arrival, math.pi / 2, speed=1.0)  # in the middle of the lane by then
    assert expert_drives([make_scene([walker], speed=10.0)]).fault.tolist() == [1.0]


def test_a_bicycle_that_rides_into_the_side_is_no_fault() -> None:
    x = 16.0  # next to the body two seconds from now, which is at 15 to 19.6 m then
    rider = moving("pedestrian", x, -0.95 - 0.3 - 2.0 * 3.0 + 0.1, math.pi / 2, speed=3.0)
    episodes = expert_drives([make_scene([rider])])
    assert episodes.collided.tolist() == [True]
    assert episodes.fault.tolist() == [0.0]


def test_whoever_backs_into_another_is_at_fault() -> None:
    states = driven(0.0)
    states[:, 0], states[:, 3] = -0.75 * np.arange(1, STEPS + 1), 3.0
    scene = make_scene([moving("car", -9.0, 0.0, speed=0.5)], speed=0.0, future=trajectory(0.0))
    batch = batch_scenes([scene])
    assert follow_plans(Simulator(), batch, torch.from_numpy(states)[None].float()).fault.tolist() == [1.0]


def test_a_standing_ego_whose_speeds_are_lies_is_still_at_fault() -> None:
    states = driven(8.0)
    states[:, 3] = 0.0
    batch = batch_scenes([make_scene([moving("car", 40.0, 0.0, math.pi, speed=8.0)])])
    assert follow_plans(Simulator(), batch, torch.from_numpy(states)[None].float()).fault.tolist() == [1.0]


def test_a_turning_body_moves_as_its_velocity_says() -> None:
    before = np.array([[0.0, 0.0, 0.3, 12.0, 2.5], [5.0, 1.0, -3.1, 4.5, 1.8]])
    after = np.array([[4.0, 2.0, 0.6, 12.0, 2.5], [1.0, 1.0, 3.0, 4.5, 1.8]])
    motion, step = Motion(before, after, np.array([0.2, -0.1])), 1e-6
    for time in (0.1, 0.5, 0.9):
        times = np.full(2, time)
        moved = (motion.at(times + step) - motion.at(times - step))[:, :2] / (2 * step)
        np.testing.assert_allclose(motion.velocity(times), moved, atol=1e-6)


@pytest.mark.parametrize(
    ("label", "speed", "acceleration", "pose", "curvature"),
    [
        ("bicycle", 3.12497, 0.94965, (7.23377, 28.22268, 0.16697, 9.64372), -0.058491),
        ("truck", 9.79264, -0.40700, (4.61018, 16.43678, -1.22451, 11.94563), 0.045806),
    ],
)
def test_turning_bodies_that_touch_at_a_corner(
    label: str, speed: float, acceleration: float, pose: tuple[float, ...], curvature: float
) -> None:
    control, ego_control = np.array([0.0, curvature]), np.array([acceleration, 0.0])
    crossing = Crossing(label, speed, ego_control, np.array(pose), control)
    truth, episodes = brute_force(crossing), expert_drives([scene_of(crossing, "corner")])
    assert truth is not None
    assert (episodes.collided.tolist(), episodes.fault.gt(0).tolist()) == ([True], [truth.fault])


def test_who_appears_is_met_where_it_appears_alone() -> None:
    late = np.full((STEPS, 3), np.nan)
    late[11:] = 20.0, 0.0, 0.0  # in the log from 3 s on; the ego's body is at 23 to 27.6 m by then
    scene = make_scene([moving("pedestrian", 200.0, 40.0)], logs=[late])
    assert expert_drives([scene]).collided.tolist() == [False]
    late[11:, 0] = 25.0
    assert expert_drives([make_scene([moving("pedestrian", 200.0, 40.0)], logs=[late])]).collided.tolist() == [True]


@pytest.mark.slow
def test_periods_assessed_at_once_are_those_assessed_one_by_one() -> None:
    scenes = [generate_scene(seed, kind, rig=None) for seed in range(3) for kind in KINDS]
    batch, rng = batch_scenes(scenes, torch.float64), np.random.default_rng(0)
    controls = torch.from_numpy(rng.uniform([-2.0, -0.02], [2.0, 0.02], (len(scenes), 1, 2))).expand(-1, STEPS, -1)
    plans = drive(Simulator(), batch, lambda moments, scenes: controls, STEPS, STEPS).ego[:, 1:]
    simulator = Simulator()
    moments = [simulator.start(batch)]
    for step in range(STEPS):
        moments.append(simulator.place(batch, moments[-1], plans[:, step], moments[-1].curvature))
    one_by_one, at_once = record_episodes(batch, moments), follow_plans(simulator, batch, plans)
    assert at_once.fault.any()
    for name in ("ego", "underway", "off_road", "time_to_collision", "collided", "fault", "ran_light"):
        torch.testing.assert_close(getattr(at_once, name), getattr(one_by_one, name), rtol=0, atol=0, msg=name)


@pytest.mark.fault("what happens between two samples")
@pytest.mark.slow
def test_random_crossings_are_judged_as_by_brute_force_at_1_khz() -> None:
    figures = compare(60, seed=1)
    assert figures["crashes"] > 30
    assert figures["found"] == figures["found_open_loop"] == 1.0
    assert figures["right_fault"] == 1.0
    assert figures["false_alarms"] < 0.05
