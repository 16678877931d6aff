"""One optimizer step's normalisation (contract 1): every token of the step weighs the same, however the step was
split.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def summed_over_ranks(value: Tensor) -> Tensor:
    """`value` added up over all ranks; itself where torch.distributed does not run. Any shape, returned anew."""
    total = value.clone()
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(total, op=dist.ReduceOp.SUM)
    return total


def most_over_ranks(number: int, device: torch.device) -> int:
    """The largest of all ranks' numbers."""
    most = torch.tensor(number, dtype=torch.int64, device=device)
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(most, op=dist.ReduceOp.MAX)
    return int(most)


def loss_scale(global_tokens: float, data_parallel: int) -> float:
    """The factor that turns a micro-batch's summed loss into its share of the step's mean.

    Data-parallel reduction averages gradients over `data_parallel` ranks; multiplying by that number undoes it, so
    that the step's gradient is that of sum(loss) / `global_tokens`. Raises `ValueError` for a step without supervised
    tokens.
    """
    if global_tokens <= 0:
        raise ValueError(
            "a step has no supervised tokens: every label is masked; look at the mixture's tasks and max_length"
        )
    return data_parallel / global_tokens
