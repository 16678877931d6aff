"""highway-env through the closed loop's interface: its frames, its kinematics, its crashes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from framework.parallel.mesh import DataRank
from framework.recipe.compose import compose
from framework.recipe.instantiate import instantiate as instantiate_recipe
from framework.scene.check import check_scene
from framework.scene.types import SceneError
from framework.simulation.closed_loop import episode_measures
from framework.simulation.episode import Planner, drive
from framework.simulation.scenes import SceneBatch, batch_scenes
from framework.simulation.simulator import Moment

pytest.importorskip("highway_env", reason="highway-env is not installed: pip install highway-env")

import gymnasium
import highway_driving
from highway_driving.environment import HighwayDriving
from hydra.utils import instantiate
from omegaconf import OmegaConf

SEEDS = range(4)


def constant(acceleration: float, curvature: float) -> Planner:
    def plan(moments: Sequence[Moment], scenes: SceneBatch) -> Tensor:
        return torch.tensor([acceleration, curvature]).to(scenes.initial).expand(len(scenes), 1, 2)

    return plan


@pytest.fixture(scope="module")
def highway() -> HighwayDriving:
    preset = Path(highway_driving.__file__).parent / "conf/environment/highway.yaml"
    made = instantiate(OmegaConf.load(preset))
    assert isinstance(made, HighwayDriving)
    return made


def test_scenes_are_sound_and_the_same_for_a_seed(highway: HighwayDriving) -> None:
    scenes = highway.scenes(SEEDS)
    assert [check_scene(scene) for scene in scenes] == [[]] * len(scenes)
    assert scenes[0].boxes is not None
    again = highway.scenes([0])[0].boxes
    assert again is not None
    np.testing.assert_array_equal(again.values, scenes[0].boxes.values)
    assert len(again) == 15


def test_keeping_lane_and_speed_is_what_the_expert_does(highway: HighwayDriving) -> None:
    batch = batch_scenes(highway.scenes(SEEDS), torch.float64)
    episodes = drive(highway, batch, constant(0.0, 0.0), 8)
    assert not episodes.off_road.any()
    moved = torch.linalg.vector_norm(episodes.ego[:, -1, :2], dim=-1)
    underway = episodes.underway.all(dim=1)
    assert underway.any()
    torch.testing.assert_close(moved[underway], batch.expert[underway, 7, 0])


def test_positive_curvature_turns_left_at_its_rate(highway: HighwayDriving) -> None:
    batch = batch_scenes(highway.scenes([1]), torch.float64)
    episodes = drive(highway, batch, constant(0.0, 0.004), 4)
    speed = float(batch.initial[0, 3])
    assert float(episodes.ego[0, -1, 2]) == pytest.approx(0.004 * speed, rel=0.02)
    slip = 0.004 * 2.5  # the body's centre moves ahead of the heading by this angle
    assert float(episodes.ego[0, -1, 1]) == pytest.approx(0.004 * speed**2 / 2 + slip * speed, rel=0.06)


def test_leaving_the_highway_is_off_road(highway: HighwayDriving) -> None:
    batch = batch_scenes(highway.scenes(SEEDS))
    assert drive(highway, batch, constant(0.0, 0.02), 12).off_road[:, -1].all()


def test_roads_are_driven_once_at_a_time_and_never_back(highway: HighwayDriving) -> None:
    batch = batch_scenes(highway.scenes([0, 1]))
    with pytest.raises(SceneError, match="highway-fast-v0-1: several times in one batch"):
        highway.start(batch.take([0, 1, 1]))
    start, still = highway.start(batch), torch.zeros(2, 2)
    highway.step(batch, start, still)
    with pytest.raises(SceneError, match="its road is at period 1, not 0"):
        highway.step(batch, start, still)
    with pytest.raises(SceneError, match="HighwayDriving did not make it"):
        HighwayDriving().start(batch)


def test_a_model_is_evaluated_on_the_highway_by_one_override_in_a_recipe(tmp_path: Path) -> None:
    words = ["plugins=[highway_driving]", "evals=[simulated_hard,highway]"]
    few = ["evals.highway.scenes=2", "evals.highway.steps=8", f"paths.cache={tmp_path}"]
    train = instantiate_recipe(compose(["recipe=rl_dapo", "scale=tiny", *words, *few]))
    torch.manual_seed(0)
    model = train.model(special_tokens=train.data.special_tokens)
    results, examples = train.evals["highway"].evaluate(model, train.data, DataRank())
    assert [example.scene.id for example in examples] == ["highway-fast-v0-0", "highway-fast-v0-1"]
    measured = results["simulation"]["model"]
    assert measured["parse_failure"]["all"] == 0.0
    assert {"collision", "off_road", "progress"} <= set(measured)


def test_whoever_accelerates_into_the_traffic_is_at_fault_where_highway_env_sees_a_crash() -> None:
    highway = HighwayDriving(seconds=12.0, vehicles=25)
    batch = batch_scenes(highway.scenes(SEEDS))
    episodes = drive(highway, batch, constant(4.0, 0.0), 48)
    crashed = []
    for seed in SEEDS:
        env = gymnasium.make(highway.name, config=highway.settings).unwrapped
        env.reset(seed=seed)
        for _ in range(48):
            env.step(np.array([4.0 / 5.0, 0.0]))
        crashed.append(env.vehicle.crashed)
    assert any(crashed)
    assert (episodes.fault > 0).tolist() == crashed
    assert float(episode_measures(episodes)["at_fault_collision"].mean()) == pytest.approx(np.mean(crashed))
