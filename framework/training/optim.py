"""AdamW for weights in bfloat16."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Annotated, Any

import torch
from annotated_types import Interval
from optimi import AdamW

from framework.recipe.component import component
from framework.recipe.ranges import Decay, LearningRate, WeightDecay


@component
class KahanAdamW(AdamW):
    """AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101) with Kahan summation (Kahan 1965) for weights in bfloat16.

    Each weight has a compensation, also in bfloat16: the part of an update that rounding drops is added to the next
    update. Without it an update smaller than a 256th of its weight is lost (Zamirai et al. 2020, arXiv 2010.06192).
    Weights in float32 are updated as torch's own AdamW updates them. Parameters may be sharded: all operations are
    elementwise.

    Args:
        params: Parameter groups.
        lr: Learning rate; the schedule scales it.
        betas: Decay rates of the first and second moment.
        eps: Added to the root of the second moment.
        weight_decay: Decoupled weight decay, scaled by the learning rate.
    """

    def __init__(
        self,
        params: Iterable[dict[str, Any]],
        lr: LearningRate = 1e-3,
        betas: tuple[Decay, Decay] = (0.9, 0.999),
        eps: Annotated[float, Interval(gt=0, le=1)] = 1e-8,
        weight_decay: WeightDecay = 0.01,
    ) -> None:
        # foreach and triton kernels do not support DTensors.
        super().__init__(params, lr, betas, weight_decay, eps, kahan_sum=True, foreach=False, triton=False)
        for group in self.param_groups:
            # Created here, not in the first step, so that a checkpoint's step count has a tensor to load into.
            group |= {"setup": True, "step": torch.tensor(0, dtype=torch.int32)}

    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Update all parameters that have a gradient. A step without any is not counted."""
        if any(parameter.grad is not None for group in self.param_groups for parameter in group["params"]):
            loss: float | None = super().step(closure)
            return loss
        return None if closure is None else closure()
