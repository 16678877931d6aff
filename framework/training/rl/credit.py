"""Credit of turns: the advantage of every answer of an episode over the same turn of the group's other episodes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from framework.objective.advantages import Advantages, GroupDecoupled, batch_moments
from framework.simulation.rewards.reward_sum import RewardSum
from framework.training.rl.rollout import Rollout, RolloutGroup


@dataclass(frozen=True)
class Credit:
    """Gives the answers of a step their advantages, where these need more than the micro-batch that trains them.

    Raises `ValueError` where turns are credited one by one and the advantages take the parts of whole episodes.
    """

    advantages: Advantages | GroupDecoupled
    """The estimator."""
    rewards: RewardSum
    """Weights and spans of the reward's parts."""
    per_turn: Literal["episode", "return_to_go"] = "episode"
    """See `ClosedLoop.credit`."""

    def __post_init__(self) -> None:
        if self.per_turn == "return_to_go" and isinstance(self.advantages, GroupDecoupled):
            raise ValueError(
                "stage.rollout.credit: return_to_go splits the whole reward over turns, and advantages=gdpo takes its "
                "parts; give episode, or other advantages"
            )

    def __call__(self, groups: Sequence[RolloutGroup], over_ranks: Callable[[Tensor], Tensor]) -> list[Tensor]:
        """Returns for each group the advantages `(g, t)` of its `g` episodes in `t` turns, as many as the longest of
        all groups has; those of turns after an episode's end are not used. `over_ranks` adds up a tensor (collective).

        `episode`: the advantage of the episode's reward, in every turn. `return_to_go`: that of what the reward changes
        by from the turn on, over the group's episodes at the same turn. An episode that has ended counts 0 there:
        survivors alone would be a biased baseline.
        """
        sizes = torch.tensor([len(group.rollouts) for group in groups], dtype=torch.int64)
        rollouts = [rollout for group in groups for rollout in group.rollouts]
        turns = max((len(rollout.answers) for rollout in rollouts), default=1)
        group_of = torch.repeat_interleave(torch.arange(len(groups)), sizes)
        if isinstance(self.advantages, GroupDecoupled):
            of_episodes = self._of_parts(self.advantages, rollouts, group_of, over_ranks)
            advantages = of_episodes[:, None].expand(-1, turns)
        elif self.per_turn == "episode":
            rewards = torch.tensor([rollout.reward for rollout in rollouts])
            advantages = self.advantages(rewards, group_of)[:, None].expand(-1, turns)
        else:
            returns = torch.tensor([returns_to_go(rollout, turns) for rollout in rollouts]).reshape(-1, turns)
            index = group_of[:, None] * turns + torch.arange(turns)
            advantages = self.advantages(returns.flatten(), index.flatten()).unflatten(0, (-1, turns))
        return list(advantages.split(sizes.tolist()))

    def _of_parts(
        self,
        advantages: GroupDecoupled,
        rollouts: Sequence[Rollout],
        groups: Tensor,
        over_ranks: Callable[[Tensor], Tensor],
    ) -> Tensor:
        names = list(self.rewards.weights)
        parts = torch.tensor([[rollout.parts[name] for name in names] for rollout in rollouts]).reshape(-1, len(names))
        weights = torch.tensor([self.rewards.weights[name] for name in names])
        spans = torch.tensor([self.rewards.spans[name] for name in names])
        sums = advantages(parts, weights, spans, groups)
        return advantages.whiten(sums, over_ranks(batch_moments(sums)))


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
