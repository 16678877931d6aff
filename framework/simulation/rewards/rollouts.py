"""The input of rewards: a policy's answers with the episodes that follow from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from framework.scene.kinematics import unicycle_rollout
from framework.scene.types import Scene, SceneError, Trajectory
from framework.simulation.episode import Episodes, follow_plans
from framework.simulation.scenes import SceneBatch, batch_scenes
from framework.simulation.simulator import Simulator


@dataclass(frozen=True, slots=True)
class RolloutBatch:
    """`n` sampled answers, usually several per scene."""

    scenes: tuple[Scene, ...]
    """The scene of each answer."""
    texts: tuple[str, ...]
    """The whole answers."""
    thoughts: tuple[str | None, ...]
    """The reasoning before the action; None where the task asks for none."""
    tokens: Tensor
    """`(n,)` int64: the answers' lengths in tokens."""
    plans: tuple[Trajectory | None, ...]
    """The decoded trajectories; None where an answer does not parse."""
    episodes: Episodes
    """The plans carried out in the simulator. Those of answers that do not parse are meaningless."""

    def __len__(self) -> int:
        return len(self.scenes)

    @property
    def parsed(self) -> Tensor:
        """`(n,)` bool: the answers that parse."""
        return torch.tensor([plan is not None for plan in self.plans], device=self.episodes.ego.device)

    def take(self, rows: Sequence[int]) -> RolloutBatch:
        """The answers `rows`, in that order."""
        return RolloutBatch(
            scenes=tuple(self.scenes[row] for row in rows),
            texts=tuple(self.texts[row] for row in rows),
            thoughts=tuple(self.thoughts[row] for row in rows),
            tokens=self.tokens[list(rows)],
            plans=tuple(self.plans[row] for row in rows),
            episodes=self.episodes.take(rows),
        )

    def graded(self, values: Tensor, unparsed: float) -> Tensor:
        """`values` `(n,)`, replaced by `unparsed` for answers that do not parse."""
        return torch.where(self.parsed, values, torch.full_like(values, unparsed))


def roll_out(
    simulator: Simulator,
    scenes: Sequence[Scene],
    texts: Sequence[str],
    thoughts: Sequence[str | None],
    tokens: Sequence[int],
    plans: Sequence[Trajectory | None],
    device: torch.device | str = "cpu",
) -> RolloutBatch:
    """Carry out `plans` in open loop on `device`, and batch them with their answers.

    Raises `SceneError` for scenes that cannot be simulated, and for plans that differ in length, or in rate from their
    scene's future.
    """
    batch = batch_scenes(scenes).to(device)
    return RolloutBatch(
        scenes=tuple(scenes),
        texts=tuple(texts),
        thoughts=tuple(thoughts),
        tokens=torch.tensor(list(tokens), dtype=torch.int64, device=device),
        plans=tuple(plans),
        episodes=follow_plans(simulator, batch, _states(batch, plans)),
    )


def _states(scenes: SceneBatch, plans: Sequence[Trajectory | None]) -> Tensor:
    """The plans' states `(n, t, 4)`; without a plan, the ego keeps its speed and heading."""
    parsed = [plan for plan in plans if plan is not None]
    steps = len(parsed[0].states) if parsed else scenes.steps
    keep = np.zeros((steps, 2))
    rows = []
    for name, initial, plan in zip(scenes.ids, scenes.initial.cpu().double().numpy(), plans, strict=True):
        if plan is not None and (len(plan.states), plan.rate_hz) != (steps, scenes.rate_hz):
            raise SceneError(
                f"scene {name}: the plan has {len(plan.states)} states at {plan.rate_hz:g} Hz, others {steps} at the "
                f"scenes' {scenes.rate_hz:g} Hz; set the action codec's steps and rate to the data's"
            )
        rows.append(unicycle_rollout(initial, keep, scenes.dt) if plan is None else plan.states)
    return torch.from_numpy(np.stack(rows)).to(scenes.initial)


class Reward(Protocol):
    """A component of the reward, which judges all answers at once.

    Raising fails the batch; `RewardSum` then calls the component for each answer alone.
    """

    def __call__(self, rollouts: RolloutBatch) -> Tensor:
        """Finite values `(n,)`; higher is better."""
        ...
