"""Answers on three roads: with a wall, with a cone, and free."""

from __future__ import annotations

from framework.scene.types import Scene, Trajectory
from framework.simulation.rewards.rollouts import RolloutBatch, roll_out
from framework.simulation.simulator import Simulator
from tests.simulation.scenes import RATE, driven, make_scene, moving


def answers(
    *pairs: tuple[Scene, Trajectory | None], thoughts: tuple[str | None, ...] | None = None, tokens: int = 40
) -> RolloutBatch:
    scenes, plans = zip(*pairs, strict=True)
    said = thoughts or (None,) * len(plans)
    return roll_out(Simulator(), scenes, ["..."] * len(plans), said, [tokens] * len(plans), plans)


def aside(metres: float) -> Trajectory:
    """The expert's way, shifted to the left."""
    states = driven(8.0)
    states[:, 1] += metres
    return Trajectory(states, RATE)


WALL = make_scene([moving("car", 30.0, 0.0)])
CONE = make_scene([moving("traffic_cone", 30.0, 0.0)])
FREE = make_scene()
