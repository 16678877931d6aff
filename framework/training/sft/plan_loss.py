"""The loss of a model's action head over one optimizer step."""

from __future__ import annotations

import torch
from torch import Tensor

from framework.model.flow_head import FlowHead
from framework.objective.normalisation import sum_over_ranks
from framework.parallel.mesh import DataRank
from framework.training.sft.plan_targets import PlanTargets


class PlanLoss:
    """Sums the loss of the action head over a step's micro-batches. For a model without one it does nothing.

    Args:
        head: The model's action head.
        plans: Plans of the step over all ranks, by which the loss is divided; a step may have none.
        dp_rank: This rank's place in data parallelism.
    """

    def __init__(self, head: FlowHead | None, plans: int, dp_rank: DataRank) -> None:
        self.head, self.plans, self.dp_rank = head, plans, dp_rank
        self._sums: list[Tensor] = []

    def add(self, targets: PlanTargets, states: Tensor) -> Tensor:
        """A micro-batch's part of the loss, for its backward pass, from the `states` of its prompts' tokens."""
        assert self.head is not None
        loss = targets.loss(self.head, states)
        self._sums.append(loss.detach().double())
        return loss * (self.head.loss_weight * self.dp_rank.world / max(1, self.plans))

    def metrics(self) -> dict[str, Tensor]:
        """The mean loss of a plan, before its weight, as a scalar on the device (collective)."""
        if self.head is None or not self.plans:
            return {}
        return {"plan_loss": sum_over_ranks(torch.stack(self._sums).sum(), self.dp_rank.group) / self.plans}
