"""AdamW for weights that are kept in bfloat16."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from optimi import AdamW


class KahanAdamW(AdamW):
    """AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101) of weights in bfloat16, each with the compensation of Kahan
    (1965), also in bfloat16: what a weight's rounding drops of an update is added to the next.

    Without it an update smaller than a 256th of its weight is lost (Zamirai et al. 2020, arXiv 2010.06192). Weights in
    float32 are updated as torch's own AdamW does. Parameters may be sharded: every operation is element by element.
    """

    def __init__(
        self,
        params: Iterable[dict[str, Any]],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
    ) -> None:
        # Its kernels know no DTensors.
        super().__init__(params, lr, betas, weight_decay, eps, kahan_sum=True, foreach=False, triton=False)
        for group in self.param_groups:
            # Made here and not in the first step, so that a checkpoint's count has a tensor to go into.
            group |= {"setup": True, "step": torch.tensor(0, dtype=torch.int32)}
