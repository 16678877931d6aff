"""The loss that keeps the experts of a mixture evenly busy, and the measures of how busy they are.

For a layer of E experts, of which the router chooses k for a token, and a sample of T tokens (Fedus et al. 2021, arXiv
2101.03961, equations 4 to 6, on one sample):

    loss = E sum_e f_e P_e,    f_e = tokens of expert e / T,    P_e = mean router probability of expert e,

which is k where all experts are equally busy, and up to E where the same k always are. It is averaged over samples and
layers. Taken sample by sample (DeepSeek-V3: 2024, arXiv 2412.19437, section 2.1.2), not over whatever lies in a
micro-batch, its gradient does not depend on how samples are split over ranks, micro-batches or packs (contract 1).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def expert_balance(router_logits: Sequence[Tensor], samples: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """The sum over samples of the loss, and how many tokens each expert read.

    Args:
        router_logits: Each layer's router logits, `(tokens, experts)`.
        samples: The sample of each token, `(tokens,)` int64; -1 for padding, which counts for nothing.
        top_k: Experts of a token.

    Returns:
        The loss, a scalar, and the tokens by layer and expert, `(layers, experts)` float64.
    """
    places = (samples >= 0).nonzero()[:, 0]
    rows, count = samples[places], int(samples.max()) + 1
    lengths = rows.bincount(minlength=count).clamp(min=1).float()[:, None]
    losses, read = [], []
    for logits in router_logits:
        probabilities = logits[places].float().softmax(dim=-1)
        best = probabilities.topk(top_k, dim=-1).indices
        chosen = torch.zeros_like(probabilities).scatter_(1, best, 1.0)
        sums = probabilities.new_zeros(count, logits.shape[-1])
        tokens = sums.index_add(0, rows, chosen)
        probability = sums.index_add(0, rows, probabilities) / lengths
        losses.append(logits.shape[-1] * (tokens / lengths * probability).sum())
        read.append(chosen.sum(dim=0).double())
    return torch.stack(losses).mean(), torch.stack(read)


def balance_metrics(tokens: Tensor) -> dict[str, Tensor]:
    """How evenly experts are busy, from their tokens `(layers, experts)`: the load of a layer's busiest expert as a
    multiple of the mean, at worst over layers, and the share of experts that read nothing. Scalars.
    """
    mean = tokens.mean(dim=1)
    return {
        "experts/busiest": (tokens.amax(dim=1) / mean).max(),
        "experts/idle": (tokens == 0).double().mean(),
    }
