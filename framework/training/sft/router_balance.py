"""The balance of a model's experts over one optimizer step."""

from __future__ import annotations

import torch
from torch import Tensor

from framework.model.language_action import LanguageActionModel
from framework.model.routers import RouterRecord
from framework.objective.expert_balance import balance_metrics, expert_balance
from framework.objective.normalisation import loss_scale, sum_over_ranks
from framework.parallel.mesh import DataRank


class RouterBalance:
    """Sums the loss of the routers over a step's micro-batches. For a model without experts it does nothing.

    Args:
        model: The model, which knows the loss's coefficient.
        samples: Samples of the step over all ranks, by which the loss is divided.
        dp_rank: This rank's place in data parallelism.
    """

    def __init__(self, model: LanguageActionModel, samples: int, dp_rank: DataRank) -> None:
        self.config = model.backbone.config.text_config
        self.coefficient = model.router_loss
        self.samples, self.dp_rank = samples, dp_rank
        self._sums: list[tuple[Tensor, Tensor]] = []

    def add(self, routers: RouterRecord, counts: bool) -> Tensor | float:
        """A micro-batch's part of the loss, for its backward pass. Unless it `counts`, the micro-batch only fills up
        this rank's number of them.
        """
        if not routers.logits:
            return 0.0
        loss, tokens = expert_balance(routers.logits, routers.samples, self.config.num_experts_per_tok)
        if not counts:
            return loss * 0.0
        self._sums.append((loss.detach().double(), tokens))
        return loss * (self.coefficient * loss_scale(self.samples, self.dp_rank.world))

    def metrics(self) -> dict[str, Tensor]:
        """The mean loss, before its coefficient, and how evenly the experts were busy, as scalars on the device
        (collective).
        """
        if not self._sums:  # of no rank: each has a micro-batch that counts
            return {}
        losses, tokens = (torch.stack(each) for each in zip(*self._sums, strict=True))
        loss = sum_over_ranks(losses.sum(), self.dp_rank.group)
        read = sum_over_ranks(tokens.sum(dim=0), self.dp_rank.group)
        return {"experts/balance_loss": loss / self.samples, **balance_metrics(read)}
