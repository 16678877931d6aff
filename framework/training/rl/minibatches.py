"""Splits a step's groups into minibatches, one per optimizer step, and these into micro-batches."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from framework.data.stream.loader import StepLoader
from framework.parallel.collectives import all_gather_objects, max_over_ranks
from framework.parallel.mesh import DataRank
from framework.training.rl.policy_batch import PolicyBatch, policy_batch
from framework.training.rl.rollout import RolloutGroup


class MinibatchBuilder:
    """Builds the minibatches of a step.

    Args:
        loader: Collates prompts with their answers.
        vocabulary: Tokens of the model's vocabulary.
        rows: Groups of a micro-batch.
        dp_rank: This process among those that train different samples.
    """

    def __init__(self, loader: StepLoader, vocabulary: int, rows: int, dp_rank: DataRank) -> None:
        self.loader, self.vocabulary, self.rows, self.dp_rank = loader, vocabulary, rows, dp_rank

    def build(
        self, groups: Sequence[RolloutGroup], num_minibatches: int, spare: RolloutGroup | None
    ) -> list[list[PolicyBatch]]:
        """Returns `num_minibatches` lists of micro-batches, on the CPU; fewer where there are fewer groups
        (collective).

        Minibatch k has every so many-th group, counted over all ranks, so that none of them is empty. All ranks have
        equally many micro-batches: where one has fewer, idle ones, made of `spare`, fill up.
        """
        counts = all_gather_objects(len(groups), self.dp_rank.group)
        number, before = min(num_minibatches, sum(counts)), sum(counts[: self.dp_rank.rank])
        minibatches = []
        for index in range(number):
            mine = sorted(groups[(index - before) % number :: number], key=lambda group: group.prompt.length)
            starts = range(0, len(mine), self.rows)
            minibatch = [self.micro_batch(mine[start : start + self.rows]) for start in starts]
            missing = max_over_ranks(len(minibatch), torch.device("cpu"), self.dp_rank.group) - len(minibatch)
            if missing:
                assert spare is not None
                minibatch += [self.micro_batch([spare], idle=True)] * missing
            minibatches.append(minibatch)
        return minibatches

    def micro_batch(self, groups: Sequence[RolloutGroup], idle: bool = False) -> PolicyBatch:
        """Returns the micro-batch of `groups`, on the CPU."""
        return policy_batch(groups, self.loader, self.vocabulary, idle)
