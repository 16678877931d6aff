"""The presets make what they say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

from framework.scene.kinematics import EGO
from framework.simulation.rewards.reward_sum import RewardSum
from framework.simulation.rewards.rollouts import roll_out
from framework.simulation.scenes import batch_scenes
from framework.simulation.simulator import Simulator
from tests.simulation.scenes import make_scene, trajectory

CONF = Path(__file__).resolve().parents[2] / "conf"
REWARDS = sorted(path.stem for path in (CONF / "rewards").glob("*.yaml"))
TERMS = sorted(path.stem for path in (CONF / "rewards/terms").glob("*.yaml") if path.stem != "none")


def load(name: str) -> Any:
    return OmegaConf.load(CONF / f"{name}.yaml")


@pytest.mark.parametrize("traffic", ["replay", "car_following"])
@pytest.mark.parametrize("dynamics", ["unicycle", "bicycle"])
def test_the_simulator(traffic: str, dynamics: str) -> None:
    preset = load("simulator/default")
    preset.update({"traffic": load(f"simulator/traffic/{traffic}"), "dynamics": load(f"simulator/dynamics/{dynamics}")})
    simulator = instantiate(OmegaConf.create({"simulator": preset, "suite": load("suite/default")})).simulator
    assert isinstance(simulator, Simulator)
    assert simulator.vehicle == EGO
    assert not simulator.start(batch_scenes([make_scene()])).collided.any()


@pytest.mark.parametrize("term", [None, *TERMS])
@pytest.mark.parametrize("name", REWARDS)
def test_the_rewards(name: str, term: str | None) -> None:
    preset = OmegaConf.merge(load(f"rewards/{name}"), load(f"rewards/terms/{term}") if term else {})
    stage = {"stage": {"max_new_tokens": 64}}
    rewards = instantiate(OmegaConf.merge(stage, {"rewards": preset}), _convert_="all")["rewards"]
    assert isinstance(rewards, RewardSum)
    scene = make_scene()
    plans = [trajectory(8.0), None]
    judged = rewards(roll_out(Simulator(), [scene] * 2, ["", ""], [None] * 2, [40, 40], plans))
    assert judged.valid.all()
    assert judged.total[0] > judged.total[1]
    assert set(preset.components) == set(judged.parts)
    assert term is None or term in judged.parts
    if name == "alpamayo" and term is None:
        far = trajectory(16.0, acceleration=-5.0)
        assert rewards(roll_out(Simulator(), [scene], [""], [None], [40], [far])).total.tolist() == [-1.0]
