"""Who is at fault in which collision, what is off the road, how long it is until a collision: worked out by hand, and
against the evaluation's own measures."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from framework.evaluation.planning import collision_steps, off_road_steps
from framework.scene.kinematics import unicycle_rollout
from framework.scene.types import Scene, SceneError, road_users
from framework.scene.world.generate import generate_scene
from framework.scene.world.scenarios import KINDS
from framework.simulation.episode import Episodes, drive, follow_plans
from framework.simulation.scenes import SceneBatch, batch_scenes
from framework.simulation.simulator import Moment, Simulator
from tests.simulation.scenes import ROAD, STEPS, driven, make_scene, moving


def carried_out(scene: Scene, states: np.ndarray | None = None) -> Episodes:  # type: ignore[type-arg]
    """What happens when the ego follows `states` (the expert's by default)."""
    batch = batch_scenes([scene], torch.float64)
    plan = batch.expert if states is None else torch.from_numpy(states)[None]
    return follow_plans(Simulator(), batch, plan)


@pytest.mark.parametrize(
    ("agent", "collided", "fault"),
    [
        (moving("car", 30.0, 0.0), True, 1.0),  # somebody who stands
        (moving("pedestrian", 30.0, 0.5), True, 1.0),
        (moving("traffic_cone", 30.0, 0.5), True, 0.5),
        (moving("car", 15.0, 0.0, speed=4.0), True, 1.0),  # into a slower one's back
        (moving("car", 60.0, 0.0, math.pi, speed=8.0), True, 1.0),  # head on
        (moving("car", -15.0, 0.0, speed=14.0), True, 0.0),  # run into from behind
        (moving("car", 10.0, -12.0, math.pi / 2, speed=10.0), True, 0.0),  # rammed from the side in one's lane
        (moving("car", 60.0, 3.5, math.pi, speed=8.0), False, 0.0),  # on the other lane
        (moving("car", 1.5, 0.5, speed=8.0), False, 0.0),  # overlaps from the beginning: a fault of annotation
    ],
)
def test_whose_fault_it_is(agent: tuple[str, tuple[float, float, float], float], collided: bool, fault: float) -> None:
    episodes = carried_out(make_scene([agent]))
    assert episodes.collided.tolist() == [collided]
    assert episodes.fault.tolist() == [fault]


def test_who_stands_is_never_at_fault() -> None:
    rammed = make_scene([moving("car", 30.0, 0.0, math.pi, speed=8.0)], speed=0.0)
    episodes = carried_out(rammed)
    assert episodes.collided.tolist() == [True]
    assert episodes.fault.tolist() == [0.0]


def test_whoever_brakes_too_late_is_at_fault_though_it_stands_in_the_end() -> None:
    states = driven(8.0, acceleration=-7.9)
    states[-1, 3] = 0.0
    wall = float(states[-1, 0]) + 3.6 + 4.5 / 2 - 0.3
    assert carried_out(make_scene([moving("car", wall, 0.0)]), states).fault.tolist() == [1.0]


def test_a_side_collision_outside_ones_lane_is_the_egos_fault() -> None:
    adjacent = moving("car", 0.0, 3.5, speed=8.0)
    states = driven(8.0)
    states[:, 1] = np.linspace(0.0, 3.0, STEPS)
    assert carried_out(make_scene([adjacent]), states).fault.tolist() == [1.0]
    pushed = make_scene(
        [adjacent], logs=[np.column_stack([driven(8.0)[:, 0], np.linspace(2.6, 1.0, STEPS), np.zeros(20)])]
    )
    assert carried_out(pushed).fault.tolist() == [0.0]


def test_an_episode_ends_with_the_fault() -> None:
    episodes = carried_out(make_scene([moving("car", 30.0, 0.0)]))
    # The front is 3.6 m ahead of the axle, the other's back at 27.75 m, two metres a step: contact in the 13th.
    assert episodes.underway[0].tolist() == [True] * 13 + [False] * 7
    assert float(episodes.ego[0, 13, 0]) == pytest.approx(26.0)
    assert (episodes.ego[0, 13:] == episodes.ego[0, 13]).all()


def test_one_who_was_met_is_not_met_again() -> None:
    # Run into from behind, the other passes through; the ego's front is not to blame when it comes out there.
    episodes = carried_out(make_scene([moving("car", -12.0, 0.0, speed=16.0)]))
    assert episodes.collided.tolist() == [True]
    assert episodes.fault.tolist() == [0.0]


@pytest.mark.slow
def test_collisions_and_road_departures_are_the_evaluations() -> None:
    rng = np.random.default_rng(0)
    scenes = [generate_scene(seed, kind, rig=None) for seed in range(6) for kind in KINDS]
    simulator = Simulator()
    hits = departures = 0
    for scene in scenes:
        assert scene.history is not None
        assert scene.boxes is not None
        assert scene.surroundings is not None
        controls = np.tile(rng.uniform([-2.0, -0.02], [2.0, 0.02]), (STEPS, 1))
        states = unicycle_rollout(np.array([0, 0, 0, scene.history.states[-1, 3]]), controls, 0.25)
        around = scene.surroundings
        boxes, poses = road_users(scene)
        touched = collision_steps(states, poses, boxes.values[:, 3:5])
        batch = batch_scenes([scene], torch.float64)
        episodes = follow_plans(simulator, batch, torch.from_numpy(states)[None])
        driven_on = int(episodes.underway.sum())
        assert bool(episodes.collided) == touched[:driven_on].any()
        hits += int(touched.any())
        outside = off_road_steps(states, around.drivable)
        found = episodes.off_road[0].numpy()
        # The evaluation wants the whole body on the road, the simulator its corners: it can only see less.
        assert not (found[:driven_on] & ~outside[:driven_on]).any()
        assert (found[:driven_on] != outside[:driven_on]).sum() <= 1
        departures += int(outside.any())
    assert hits > 5
    assert departures > 5


def test_time_to_collision_counts_down_to_a_standing_car() -> None:
    episodes = carried_out(make_scene([moving("car", 60.0, 0.0)]))
    gap = 60.0 - 2.25 - 3.6 - episodes.ego[0, 1:, 0]
    torch.testing.assert_close(episodes.time_to_collision[0], gap / 8.0)


def test_time_to_collision_leaves_out_who_is_behind_or_keeps_clear() -> None:
    clear = [moving("car", -20.0, 0.0, speed=12.0), moving("car", 60.0, 3.5, math.pi, speed=8.0)]
    assert carried_out(make_scene(clear)).time_to_collision[0, :8].isinf().all()


def test_off_road_begins_when_a_corner_leaves() -> None:
    states = driven(8.0)
    states[:, 1] = np.linspace(0.0, 6.0, STEPS)
    expected = states[:, 1] + 0.95 > 5.1  # half the width, and the tolerance of a tenth
    np.testing.assert_array_equal(carried_out(make_scene(), states).off_road[0].numpy(), expected)
    assert not carried_out(make_scene(drivable=()), states).off_road.any()


@pytest.mark.fault("what happens between two samples")
def test_a_strip_without_road_is_found_wherever_the_samples_lie() -> None:
    """25 m/s are 6.25 m a sample; the strip is 1 m long."""
    for start in np.arange(30.0, 37.0, 0.25):
        parts = (ROAD.clip([-50.0, -5.0], [start, 5.0]), ROAD.clip([start + 1.0, -5.0], [200.0, 5.0]))
        scene = make_scene(drivable=parts, speed=25.0, speed_limit=30.0)
        episodes = carried_out(scene)
        assert episodes.off_road.sum() == 1 or episodes.off_road.sum() == 2, start  # the front, then the rear
        assert off_road_steps(np.concatenate([np.zeros((1, 4)), driven(25.0)]), parts).any()
    begins_outside = make_scene(drivable=(ROAD + np.array([56.0, 0.0]),))
    assert carried_out(begins_outside).off_road[0].tolist() == [True] * 3 + [False] * 17  # its rear enters at 7 m


def test_the_road_is_the_union_of_its_polygons() -> None:
    halves = (ROAD * (1.0, 0.5) + (0.0, 2.5), ROAD * (1.0, 0.5) + (0.0, -2.5))
    assert not carried_out(make_scene(drivable=halves)).off_road.any()


@pytest.mark.parametrize(
    ("line", "ran"),
    [
        ([20.0, -5.0, 20.0, 5.0, 0.0, np.inf], True),
        ([20.0, -5.0, 20.0, 5.0, 0.0, 2.0], False),  # open again: the front is there after (20 - 3.6) / 8 = 2.05 s
        ([20.0, -5.0, 20.0, 5.0, 2.0, 2.1], True),
        ([20.0, 2.0, 20.0, 5.0, 0.0, np.inf], False),  # another lane's
        ([3.0, -5.0, 3.0, 5.0, 0.0, np.inf], False),  # passed already
        ([80.0, -5.0, 80.0, 5.0, 0.0, np.inf], False),
    ],
)
def test_closed_lines(line: list[float], ran: bool) -> None:
    lights = make_scene(red_lights=np.array([line]))
    assert carried_out(lights).ran_light.tolist() == [ran]
    plain = batch_scenes([lights, make_scene()], torch.float64)
    assert follow_plans(Simulator(), plain, plain.expert).ran_light.tolist() == [ran, False]


@pytest.mark.slow
def test_a_batch_is_its_scenes() -> None:
    scenes = [generate_scene(seed, kind, rig=None) for seed, kind in enumerate(KINDS)]

    def straight(moments: object, batch: SceneBatch) -> torch.Tensor:
        return torch.zeros(len(batch), 1, 2).to(batch.initial)

    together = drive(Simulator(), batch_scenes(scenes, torch.float64), straight, STEPS)
    assert together.fault.any()
    for row, scene in enumerate(scenes):
        alone = drive(Simulator(), batch_scenes([scene], torch.float64), straight, STEPS)
        for name in ("ego", "off_road", "time_to_collision", "collided", "fault", "underway", "ran_light"):
            torch.testing.assert_close(getattr(together.take([row]), name), getattr(alone, name))


def test_the_end_of_the_logs_is_the_end() -> None:
    batch, simulator = batch_scenes([make_scene()]), Simulator()
    moment: Moment = simulator.start(batch)
    for _ in range(STEPS):
        moment = simulator.step(batch, moment, torch.zeros(1, 2))
    with pytest.raises(SceneError, match=r"scene made: its log ends after 20 periods of 0\.25 s"):
        simulator.step(batch, moment, torch.zeros(1, 2))
