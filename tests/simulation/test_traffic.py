"""Other road users: replayed to the bit, or held up by who is in their way and by nobody else."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from framework.scene.intelligent_driver import IntelligentDriver
from framework.scene.types import FloatArray
from framework.scene.world.actors import follow
from framework.scene.world.generate import generate_scene
from framework.scene.world.scenarios import KINDS
from framework.simulation.car_following import CarFollowing
from framework.simulation.scenes import SceneBatch, batch_scenes
from framework.simulation.simulator import Moment, Simulator
from framework.simulation.traffic import Replay, Traffic
from tests.simulation.scenes import Agent, make_scene, moving


def watch(batch: SceneBatch, traffic: Traffic, controls: Tensor | None = None, steps: int = 20) -> list[Moment]:
    simulator = Simulator(traffic)
    moments = [simulator.start(batch)]
    for _ in range(steps):
        moments.append(simulator.step(batch, moments[-1], torch.zeros(len(batch), 2) if controls is None else controls))
    return moments


def lone(*agents: Agent, **fields: object) -> SceneBatch:
    """Agents alone in the world: the ego stands far behind them."""
    return batch_scenes([make_scene(agents, **{"speed": 0.0, **fields})])  # type: ignore[arg-type]


def stations(moments: list[Moment], agent: int = 0) -> FloatArray:
    return np.array([float(moment.agents.stations[0, agent]) for moment in moments])


def test_replay_is_the_log() -> None:
    batch = batch_scenes([generate_scene(seed, kind, rig=None) for seed, kind in enumerate(KINDS)])
    moments = watch(batch, Replay())
    torch.testing.assert_close(torch.stack([moment.agents.poses for moment in moments], dim=2), batch.logs)


def test_an_undisturbed_agent_is_its_log() -> None:
    log = np.zeros((20, 3))
    log[:, 0] = 10.0 + np.cumsum(np.r_[np.zeros(4), np.linspace(0, 3, 8), np.linspace(3, 0, 5), np.zeros(3)])
    log[:, 1] = np.linspace(0.0, 3.0, 20) ** 2 / 3
    log[:, 2] = np.linspace(0.0, 0.5, 20)
    batch = lone(moving("car", 10.0, 0.0), logs=[log])
    moments = watch(batch, CarFollowing())
    torch.testing.assert_close(torch.stack([moment.agents.poses for moment in moments], dim=2), batch.logs)


def test_a_standing_ego_holds_up_who_follows() -> None:
    behind = moving("car", -30.0, 0.0, speed=9.0)
    batch = lone(behind)
    replayed, moments = watch(batch, Replay()), watch(batch, CarFollowing())
    assert replayed[-1].collided
    assert not moments[-1].collided
    gaps = [-1.0 - (float(moment.agents.poses[0, 0, 0]) + 4.5 / 2) for moment in moments]
    assert 1.5 < gaps[-1] < 4.0  # the standstill gap, 2.5 m, is reached only in the end
    speeds = [float(moment.agents.velocities[0, 0].norm()) for moment in moments]
    assert speeds[-1] < 1.2
    assert max(-np.diff(speeds)) / 0.25 < 6.0 + 1e-3


def test_a_lead_that_brakes_is_kept_at_a_distance() -> None:
    lead, follower = np.zeros((2, 20, 3))
    time = np.arange(1, 21) / 4
    lead[:, 0] = 120.0 + 10.0 * np.minimum(time, 2.5) - 2.0 * np.minimum(time, 2.5) ** 2
    follower[:, 0] = 100.0 + 10.0 * time
    batch = lone(moving("car", 120.0, 0.0, speed=10.0), moving("car", 100.0, 0.0, speed=10.0), logs=[lead, follower])
    moments = watch(batch, CarFollowing())
    gaps = [float(m.agents.poses[0, 0, 0] - m.agents.poses[0, 1, 0]) - 4.5 for m in moments]
    assert min(gaps) > 0.8
    assert stations(moments)[-1] == pytest.approx(12.5, abs=1e-3)  # the lead itself does as it did


def test_nobody_is_ever_ahead_of_the_log_and_who_was_held_up_catches_up() -> None:
    # The ego crawls for a second, then leaves the road to the one behind.
    batch = lone(moving("car", -20.0, 0.0, speed=8.0), speed=2.0)
    simulator = Simulator(CarFollowing())
    moments = [simulator.start(batch)]
    for step in range(20):
        ego = moments[-1].ego.clone()
        ego[:, 0] += 0.5
        if step >= 4:
            ego[:, 1] = 60.0
        moments.append(simulator.place(batch, moments[-1], ego, torch.zeros(1)))
    driven, log = stations(moments), batch.stations[0, 0].numpy()
    assert (driven <= log + 1e-4).all()
    delay = log - driven
    assert delay[8] > 0.5
    pace = np.diff(driven) * 4
    assert pace[-1] > 8.0  # faster than the log, which it is behind
    assert pace.max() < 1.2 * 8.0
    assert delay[-1] < delay.max()


def test_a_vehicle_waits_for_who_walks_across() -> None:
    walker = moving("pedestrian", 40.0, -5.0, np.pi / 2, speed=1.5)
    batch = lone(moving("car", 15.0, 0.0, speed=8.0), walker, speed_limit=None)
    moments = watch(batch, CarFollowing())
    car = np.array([float(m.agents.poses[0, 0, 0]) for m in moments])
    lateral = np.array([float(m.agents.poses[0, 1, 1]) for m in moments])
    in_way = np.abs(lateral) < 0.9
    assert in_way.any()
    assert (car[in_way] + 2.25 < 40.0).all()
    assert car[-1] > 24.0
    assert (batch.logs[0, 0, in_way, 0] + 2.25 > 40.0).any()  # the log itself shows no regard


def test_of_two_vehicles_the_one_that_would_be_there_first_goes() -> None:
    first = moving("car", 50.0, -16.0, np.pi / 2, speed=8.0)  # at the crossing after two seconds
    second = moving("car", 26.0, 0.0, speed=8.0)  # after three
    batch = lone(first, second)
    moments = watch(batch, CarFollowing())
    np.testing.assert_allclose(stations(moments, 0), batch.stations[0, 0], atol=1e-3)
    assert (batch.stations[0, 1].numpy() - stations(moments, 1)).max() > 1.0
    boxes = [torch.cat([m.agents.poses[0], batch.sizes[0]], dim=-1) for m in moments]
    assert min(float((pair[0, :2] - pair[1, :2]).norm()) for pair in boxes) > 3.5


def test_neighbours_parked_cars_and_who_is_gone_hold_nobody_up() -> None:
    agents = [
        moving("car", 10.0, 0.0, speed=8.0),
        moving("car", 20.0, 3.5, speed=2.0),  # the next lane
        moving("car", 30.0, -2.2),  # parked next to the path
        moving("car", 40.0, 3.5, np.pi, speed=8.0),  # oncoming
        moving("car", 25.0, 0.0, speed=1.0),  # not there any more
    ]
    scene = make_scene(agents, speed=0.0)
    assert scene.surroundings is not None
    scene.surroundings.agents[4] = np.nan
    batch = batch_scenes([scene])
    batch.present[:, 4] = False
    moments = watch(batch, CarFollowing())
    np.testing.assert_allclose(stations(moments), batch.stations[0, 0], atol=1e-4)


@pytest.mark.slow
def test_a_batch_is_its_scenes() -> None:
    scenes = [generate_scene(seed, kind, rig=None) for seed, kind in enumerate(KINDS)]
    together = watch(batch_scenes(scenes, torch.float64), CarFollowing())[-1].agents.poses
    for row, scene in enumerate(scenes):
        alone = watch(batch_scenes([scene], torch.float64), CarFollowing())[-1].agents.poses[0]
        count = len(scene.boxes or ())
        torch.testing.assert_close(together[row, :count], alone[:count], rtol=0, atol=1e-9)


def test_the_intelligent_driver() -> None:
    rng = np.random.default_rng(0)
    speed, gap, lead = rng.uniform(0, 12, 200), rng.uniform(1, 80, 200), rng.uniform(0, 12, 200)
    found = acceleration(*map(torch.from_numpy, (speed, np.full(200, 13.0), gap, speed - lead)))
    expected = [follow(v, 13.0, s, u) for v, s, u in zip(speed, gap, lead, strict=True)]
    np.testing.assert_allclose(found.clamp(min=-6.0), expected, atol=1e-9)
    # By hand: at half the desired speed behind a lead of one's own speed at the equilibrium gap.
    gap_wanted = (2.5 + 1.3 * 5.0) / (1 - 0.5**4) ** 0.5
    still = acceleration(*(torch.tensor(value) for value in (5.0, 10.0, gap_wanted, 0.0)))
    assert float(still) == pytest.approx(0.0, abs=1e-6)


def acceleration(speed: torch.Tensor, desired: torch.Tensor, gap: torch.Tensor, closing: torch.Tensor) -> torch.Tensor:
    model = IntelligentDriver()
    share: torch.Tensor = model.free_term(speed, desired) - model.interaction_term(speed, gap, closing)
    return model.acceleration * share
