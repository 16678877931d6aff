"""Scenes as tensors: what is padded, bridged and refused."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from framework.data.sources.argoverse import Argoverse
from framework.data.sources.forecasting import Forecasting
from framework.data.sources.recordings import find_recordings
from framework.scene.types import Boxes, Scene, SceneError, Trajectory, road_users
from framework.scene.world.generate import generate_scene
from framework.simulation.car_following import CarFollowing
from framework.simulation.episode import follow_plans
from framework.simulation.measures import comfortable, no_fault, on_road, planning_score, progress
from framework.simulation.scenes import SceneBatch, batch_scenes
from framework.simulation.simulator import Simulator
from tests.simulation.scenes import make_scene, moving, trajectory


def assert_same(one: SceneBatch, other: SceneBatch) -> None:
    for field in dataclasses.fields(SceneBatch):
        first, second = getattr(one, field.name), getattr(other, field.name)
        if isinstance(first, torch.Tensor):
            torch.testing.assert_close(first, second, rtol=0, atol=0, equal_nan=True)
        else:
            assert first == second


def test_a_batch_tells_who_drives_walks_and_lies_about() -> None:
    agents = [moving("car", 20.0, 0.0, speed=6.0), moving("car", 30.0, 4.0), moving("pedestrian", 15.0, 3.0, speed=1.0)]
    batch = batch_scenes([make_scene([*agents, moving("traffic_cone", 9.0, 2.0)]), make_scene()])
    assert batch.logs.shape == (2, 4, 21, 3)
    assert batch.driven.tolist() == [[True, False, False, False], [False] * 4]
    assert batch.walking.tolist() == [[False, False, True, False], [False] * 4]
    assert batch.alive.tolist() == [[True, True, True, False], [False] * 4]
    assert batch.present.any(dim=-1).tolist() == [[True] * 4, [False] * 4]
    assert batch.stations[0, 0].tolist() == pytest.approx(list(np.arange(21) * 1.5))


def test_what_is_unknown_is_padded_with_what_costs_nothing() -> None:
    unknown = make_scene(drivable=(), route=None, speed_limit=None)
    batch = batch_scenes([unknown, make_scene(red_lights=np.array([[9.0, -5.0, 9.0, 5.0, 0.0, 3.0]]))])
    assert batch.mapped.tolist() == [False, True]
    assert batch.speed_limit.tolist() == [float("inf"), 10.0]
    assert batch.red_lights.isnan().all(dim=-1)[:, 0].tolist() == [True, False]
    torch.testing.assert_close(batch.route[0, -1], batch.expert[0, -1, :2])


def test_gaps_in_a_log_are_bridged_and_remembered() -> None:
    log = np.zeros((20, 3))
    log[:, 0], log[:, 2] = 10.0 + np.arange(1, 21), np.pi - 0.05
    log[3:6] = log[15:] = np.nan
    log[6:15, 2] = -np.pi + 0.05
    batch = batch_scenes([make_scene([moving("car", 10.0, 0.0, np.pi - 0.05)], logs=[log])], torch.float64)
    assert batch.present[0, 0].tolist() == [True] * 4 + [False] * 3 + [True] * 9 + [False] * 5
    np.testing.assert_allclose(batch.logs[0, 0, :, 0], [*range(10, 26), *[25] * 5])
    assert float(batch.logs[0, 0, 5, 2]) == pytest.approx(np.pi)


def test_a_scene_that_comes_twice_is_prepared_once_and_taken_twice() -> None:
    one, other = (generate_scene(seed, "curve", rig=None) for seed in (0, 1))
    apart = batch_scenes([one, other, generate_scene(0, "curve", rig=None)])
    assert_same(batch_scenes([one, other, one]), apart)
    assert_same(batch_scenes([one, other]).take([0, 1, 0]), apart)


@pytest.mark.parametrize("field", ["history", "future", "boxes", "surroundings"])
def test_what_cannot_be_simulated_is_named(field: str) -> None:
    broken: Any = {field: None}
    with pytest.raises(SceneError, match=f"scene made: field `{field}` is missing"):
        batch_scenes([make_scene(**broken)])


NAN = np.array([[-50.0, -5.0], [np.nan, -5.0], [200.0, 5.0], [-50.0, 5.0]])


@pytest.mark.fault("NaN in a map")
@pytest.mark.parametrize(
    ("field", "broken"),
    [
        ("surroundings.drivable", {"drivable": (NAN,)}),
        ("surroundings.drivable", {"drivable": (NAN[2:],)}),
        ("surroundings.drivable", {"drivable": (np.full((4, 2), 1e30),)}),
        ("surroundings.route", {"route": NAN}),
        ("surroundings.red_lights", {"red_lights": np.full((1, 6), np.nan)}),
        ("surroundings.speed_limit", {"speed_limit": float("nan")}),
        ("surroundings.agents", {"logs": [np.full((20, 3), 1e30)]}),
        ("history.states", {"history": Trajectory(np.full((7, 4), np.nan))}),
        ("future.states", {"future": Trajectory(np.full((20, 4), np.inf))}),
    ],
)
def test_what_is_not_finite_or_absurd_is_named(field: str, broken: dict[str, Any]) -> None:
    with pytest.raises(SceneError, match=rf"scene made: .*{re.escape(field)}"):
        batch_scenes([make_scene([moving("car", 30.0, 4.0)], **broken)])


@pytest.mark.fault("road users who come near later")
def test_the_distant_are_simulated_and_no_target() -> None:
    scene = next(
        one
        for seed in range(40)
        if (one := generate_scene(seed, "cut_in", rig=None)).surroundings and one.surroundings.distant is not None
    )
    assert scene.boxes is not None
    assert scene.surroundings is not None
    boxes, agents = road_users(scene)
    assert len(boxes) > len(scene.boxes)
    assert np.hypot(*boxes.values[len(scene.boxes) :, :2].T).min() > 50.0
    logs = batch_scenes([scene], torch.float64).logs[0]
    np.testing.assert_allclose(logs[:, 1:, :2], agents[..., :2])


@pytest.mark.fault("numbers that no record may hold")
def test_who_is_never_there_and_a_route_without_length_cost_nothing() -> None:
    scene = make_scene([moving("car", 20.0, 0.0, speed=6.0)])
    assert scene.surroundings is not None
    values = np.array([[np.nan, np.nan, 0.8, 4.5, 1.9, 1.6, 0.0, 0.0, 0.0]])
    nowhere = {"distant": Boxes(values, ("car",)), "distant_agents": np.full((1, 20, 3), np.nan)}
    for changes in (nowhere, {"route": np.zeros((5, 2))}, {"route": np.zeros((1, 2))}):
        around = dataclasses.replace(scene.surroundings, **changes)
        batch = batch_scenes([dataclasses.replace(scene, surroundings=around)])
        assert batch.logs.isfinite().all()
        assert batch.present[0].any(dim=-1).tolist() == [True, *[False] * ("distant" in changes)]
        if "route" in changes:
            torch.testing.assert_close(batch.route[0, -1], batch.expert[0, -1, :2])


def test_one_clock_for_all() -> None:
    with pytest.raises(SceneError, match="scene short: field `future` has 10 states at 4 Hz, scene made 20"):
        batch_scenes([make_scene(), make_scene(name="short", future=trajectory(8.0, steps=10), agents=())])
    with pytest.raises(SceneError, match="no scenes"):
        batch_scenes([])


@pytest.fixture(scope="module")
def logged(recordings: Path) -> list[Scene]:
    """Some moments of the recordings in which the ego's past and future are known."""
    found = [find_recordings(recordings, {"any": dataset}) for dataset in (Argoverse(), Forecasting())]
    scenes = [scene for each in found for item in each.items[::8] for scene in each.scenes(item)]
    return [scene for scene in scenes if scene.history is not None and scene.future is not None]


@pytest.mark.parametrize("traffic", [None, CarFollowing()], ids=["replay", "car following"])
def test_recorded_experts_drive_well(logged: list[Scene], traffic: CarFollowing | None) -> None:
    assert len(logged) > 5
    episodes = follow_plans(Simulator(traffic), (batch := batch_scenes(logged)), batch.expert)
    for measure in (no_fault, on_road, progress):
        assert measure(episodes).min() > 0.99
    assert comfortable(episodes).mean() > 0.8
    assert planning_score(episodes).mean() > 0.9
