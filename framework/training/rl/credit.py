"""Credit of turns: the advantage of every answer of an episode over the same turn of the group's other episodes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from framework.objective.policy import PolicyObjective
from framework.training.rl.rollout import Rollout, RolloutGroup


def turn_advantages(
    groups: Sequence[RolloutGroup], objective: PolicyObjective, credit: Literal["episode", "return_to_go"]
) -> list[Tensor]:
    """Returns for each group the advantages `(g, t)` of its `g` episodes in `t` turns, as many as the longest of all
    groups has; those of turns after an episode's end are not used.

    `episode`: the advantage of the episode's reward, in every turn. `return_to_go`: that of what the reward changes by
    from the turn on, over the group's episodes at the same turn. An episode that has ended counts 0 there: survivors
    alone would be a biased baseline.
    """
    sizes = torch.tensor([len(group.rollouts) for group in groups], dtype=torch.int64)
    turns = max((len(rollout.answers) for group in groups for rollout in group.rollouts), default=1)
    group_of = torch.repeat_interleave(torch.arange(len(groups)), sizes)
    if credit == "episode":
        rewards = torch.cat([group.rewards for group in groups]) if groups else torch.zeros(0)
        advantages = objective.advantages(rewards, group_of)[:, None].expand(-1, turns)
    else:
        returns = torch.tensor([returns_to_go(rollout, turns) for group in groups for rollout in group.rollouts])
        index = group_of[:, None] * turns + torch.arange(turns)
        advantages = objective.advantages(returns.flatten(), index.flatten()).unflatten(0, (-1, turns))
    return list(advantages.split(sizes.tolist()))


def returns_to_go(rollout: Rollout, turns: int) -> list[float]:
    """Returns what the episode's reward changes by from each of so many turns on: 0 after its end."""
    earned = [0.0, *(turn.earned for turn in rollout.turns)]
    return [rollout.reward - before for before in earned] + [0.0] * (turns - len(earned))


def turn_rows(group: RolloutGroup) -> list[RolloutGroup]:
    """Returns the rows that train a group: its prompt with all first answers, and each later turn with its own prompt,
    episode after episode.
    """
    later = [
        RolloutGroup(turn.prompt, (Rollout.of(turn.generation, plan=None, reward=rollout.reward),))
        for rollout in group.rollouts
        for turn in rollout.turns
    ]
    return [group, *later]


def row_advantages(group: RolloutGroup, advantages: Tensor) -> list[Tensor]:
    """Returns the advantages of each of `turn_rows`, of the group's `(g, t)`."""
    later = [
        advantages[episode, turn, None]
        for episode, rollout in enumerate(group.rollouts)
        for turn in range(1, len(rollout.answers))
    ]
    return [advantages[:, 0], *later]
