"""Normalisation of one optimizer step: every token of the step weighs the same, however it was split (contract 1)."""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor


def sum_over_ranks(value: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """Sum `value`, of any shape, over the data-parallel ranks of `group`; a copy without a group."""
    total = value.clone()
    if group is not None:
        dist.all_reduce(total, op=dist.ReduceOp.SUM, group=group)
    return total


def loss_scale(global_tokens: float, data_parallel: int) -> float:
    """The factor that turns a micro-batch's summed loss into its share of the step's mean.

    Data-parallel reduction averages gradients over `data_parallel` ranks. Multiplying by that number undoes it, so
    that the step's gradient is that of sum(loss) / `global_tokens`. Raises `ValueError` for a step without supervised
    tokens.
    """
    if global_tokens <= 0:
        raise ValueError(
            "a step has no supervised tokens: every label is masked; look at the mixture's tasks and max_length"
        )
    return data_parallel / global_tokens
