"""The input of rewards: a policy's answers with the episodes that follow from them."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from framework.scene.check import plan_fault
from framework.scene.kinematics import unicycle_rollout
from framework.scene.types import Scene, Trajectory
from framework.simulation.episode import Episodes, follow_plans
from framework.simulation.scenes import SceneBatch, batch_scenes
from framework.simulation.simulator import Simulator

log = logging.getLogger(__name__)


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
    """The decoded trajectories; None where an answer does not parse, or spells a plan that cannot be driven."""
    faults: tuple[str | None, ...]
    """Why the plan of each answer cannot be driven, one of `PLAN_FAULTS`; None for all others."""
    episodes: Episodes
    """The plans carried out in the simulator. Those of answers that do not parse are meaningless."""

    def __len__(self) -> int:
        return len(self.scenes)

    @property
    def parsed(self) -> Tensor:
        """`(n,)` bool: the answers that parse and whose plans can be driven."""
        return torch.tensor([plan is not None for plan in self.plans], device=self.episodes.ego.device)

    def take(self, rows: Sequence[int]) -> RolloutBatch:
        """The answers `rows`, in that order."""
        return RolloutBatch(
            scenes=tuple(self.scenes[row] for row in rows),
            texts=tuple(self.texts[row] for row in rows),
            thoughts=tuple(self.thoughts[row] for row in rows),
            tokens=self.tokens[list(rows)],
            plans=tuple(self.plans[row] for row in rows),
            faults=tuple(self.faults[row] for row in rows),
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

    A plan that cannot be driven (see `plan_fault`) counts as an answer that does not parse, hence as the worst. Plans
    must have the length that most of them have, and the rate of their scene's future. Raises `SceneError` for scenes
    that cannot be simulated.
    """
    batch = batch_scenes(scenes).to(device)
    faults = _faults(batch, plans)
    plans = [None if fault else plan for plan, fault in zip(plans, faults, strict=True)]
    return RolloutBatch(
        scenes=tuple(scenes),
        texts=tuple(texts),
        thoughts=tuple(thoughts),
        tokens=torch.tensor(list(tokens), dtype=torch.int64, device=device),
        plans=tuple(plans),
        faults=faults,
        episodes=follow_plans(simulator, batch, _states(batch, plans)),
    )


def _faults(scenes: SceneBatch, plans: Sequence[Trajectory | None]) -> tuple[str | None, ...]:
    """Why each plan cannot be driven, or None. The right length is that of most plans, the longest of several."""
    lengths = Counter(len(plan.states) for plan in plans if plan is not None and 0 < len(plan.states) <= scenes.steps)
    steps = max(lengths, key=lambda length: (lengths[length], length), default=scenes.steps)
    faults = tuple(None if plan is None else plan_fault(plan, steps, scenes.rate_hz) for plan in plans)
    mismatched = [name for name, fault in zip(scenes.ids, faults, strict=True) if fault in ("rate", "length")]
    if mismatched:
        log.warning(
            "%d of %d plans, as in scene %s, have not %d states at the scenes' %g Hz and count as the worst; if all "
            "have not, set the action codec's steps and rate to the data's",
            len(mismatched),
            len(plans),
            mismatched[0],
            steps,
            scenes.rate_hz,
        )
    return faults


def _states(scenes: SceneBatch, plans: Sequence[Trajectory | None]) -> Tensor:
    """The plans' states `(n, t, 4)`; without a plan, the ego keeps its speed and heading."""
    steps = next((len(plan.states) for plan in plans if plan is not None), scenes.steps)
    keep = np.zeros((steps, 2))
    rows = [
        unicycle_rollout(initial, keep, scenes.dt) if plan is None else plan.states
        for initial, plan in zip(scenes.initial.cpu().double().numpy(), plans, strict=True)
    ]
    return torch.from_numpy(np.stack(rows)).to(scenes.initial)


def span_of(reward: Reward) -> float:
    """The distance between the worst and the best value of a component: its attribute `span`, 1 without one."""
    return float(getattr(reward, "span", 1.0))


class Reward(Protocol):
    """A component of the reward, which judges all answers at once.

    Penalties are -1 to 0, achievements 0 to 1. A component whose values lie otherwise declares their `span`, the
    distance between the worst and the best (see `span_of`).

    Raising fails the batch; `RewardSum` then calls the component for each answer alone.
    """

    def __call__(self, rollouts: RolloutBatch) -> Tensor:
        """Finite values `(n,)`; higher is better."""
        ...
