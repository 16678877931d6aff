"""Splits a step's groups into minibatches, one per optimizer step, and these into micro-batches."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from framework.data.stream.loader import StepLoader
from framework.model.flow_head import FlowHead
from framework.parallel.collectives import all_gather_objects, max_over_ranks
from framework.parallel.mesh import DataRank
from framework.training.rl.credit import row_advantages, turn_rows
from framework.training.rl.policy_batch import PolicyBatch, policy_batch
from framework.training.rl.rollout import RolloutGroup


class MinibatchBuilder:
    """Builds the minibatches of a step.

    Args:
        loader: Collates prompts with their answers.
        vocabulary: Tokens of the model's vocabulary.
        rows: Groups of a micro-batch.
        dp_rank: This process among those that train different samples.
        head: The action head that draws the plans; None where answers are tokens.
    """

    def __init__(
        self, loader: StepLoader, vocabulary: int, rows: int, dp_rank: DataRank, head: FlowHead | None = None
    ) -> None:
        self.loader, self.vocabulary, self.rows, self.dp_rank, self.head = loader, vocabulary, rows, dp_rank, head

    def build(
        self,
        groups: Sequence[RolloutGroup],
        num_minibatches: int,
        spare: RolloutGroup | None,
        advantages: Sequence[Tensor] | None = None,
    ) -> list[list[PolicyBatch]]:
        """Returns `num_minibatches` lists of micro-batches, on the CPU; fewer where there are fewer groups
        (collective).

        Minibatch k has every so many-th group, counted over all ranks, so that none of them is empty. All ranks have
        equally many micro-batches: where one has fewer, idle ones, made of `spare`, fill up.

        `advantages`, if given, are those of each group's turns (see `Credit`). Then every turn has a row of
        its own, and a micro-batch no more positions than `rows` of the longest. A minibatch counts groups, so that the
        number of optimizer steps does not depend on turns.
        """
        counts = all_gather_objects(len(groups), self.dp_rank.group)
        number, before = min(num_minibatches, sum(counts)), sum(counts[: self.dp_rank.rank])
        minibatches = []
        for index in range(number):
            part = slice((index - before) % number, None, number)
            if advantages is None:
                mine = sorted(groups[part], key=lambda group: group.prompt.length)
                starts = range(0, len(mine), self.rows)
                minibatch = [self.micro_batch(mine[start : start + self.rows]) for start in starts]
            else:
                minibatch = self._of_turns(groups[part], advantages[part])
            missing = max_over_ranks(len(minibatch), torch.device("cpu"), self.dp_rank.group) - len(minibatch)
            if missing:
                assert spare is not None
                unused = None if advantages is None else [torch.zeros(len(spare.rollouts))]
                minibatch += [self.micro_batch([spare], idle=True, advantages=unused)] * missing
            minibatches.append(minibatch)
        return minibatches

    def micro_batch(
        self, groups: Sequence[RolloutGroup], idle: bool = False, advantages: Sequence[Tensor] | None = None
    ) -> PolicyBatch:
        """Returns the micro-batch of `groups`, on the CPU; `advantages` are those of their answers, if known."""
        return policy_batch(groups, self.loader, self.vocabulary, idle, advantages, self.head)

    def _of_turns(self, groups: Sequence[RolloutGroup], advantages: Sequence[Tensor]) -> list[PolicyBatch]:
        """The micro-batches of a minibatch whose groups have turns."""
        rows = [
            pair
            for group, own in zip(groups, advantages, strict=True)
            for pair in zip(turn_rows(group), row_advantages(group, own), strict=True)
        ]
        rows.sort(key=lambda row: positions(row[0]))
        limit = self.rows * max((positions(row) for row, _ in rows), default=0)
        parts: list[list[tuple[RolloutGroup, Tensor]]] = []
        for row in rows:  # by length, so that the last one's is the longest of its part
            if parts and (len(parts[-1]) + 1) * positions(row[0]) <= limit:
                parts[-1].append(row)
            else:
                parts.append([row])
        return [self.micro_batch([row for row, _ in part], advantages=[own for _, own in part]) for part in parts]


def positions(row: RolloutGroup) -> int:
    """Returns the tokens of a row: its prompt and all answers."""
    return row.prompt.length + sum(len(rollout.tokens) for rollout in row.rollouts)
