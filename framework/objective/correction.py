"""Correction of the mismatch between the engine that samples and the trainer.

Their kernels and precisions differ, and so do their log-probabilities of the same weights. The importance weight of a
sampled token corrects for it:

    w = pi_train / pi_engine

with pi_train the policy before the batch's first update.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple

from annotated_types import Interval
from torch import Tensor

from framework.objective.groups import sum_by_group
from framework.objective.policy_loss import LOG_RATIO_LIMIT, log_ratio
from framework.recipe.component import component
from framework.recipe.ranges import Share


class ImportanceWeights(NamedTuple):
    """Bounded importance weights of `n` tokens."""

    weight: Tensor
    """Factor of each token's policy loss, `(n,)`, without gradient."""
    outside: Tensor
    """Whether w was out of bounds, `(n,)` bool."""


def token_weights(old_logprobs: Tensor, engine_logprobs: Tensor) -> Tensor:
    """w of each token, `(n,)`."""
    return log_ratio(old_logprobs, engine_logprobs).exp()


def sequence_weights(old_logprobs: Tensor, engine_logprobs: Tensor, samples: Tensor, count: int) -> Tensor:
    """w of the whole answer, the product over its tokens, repeated for each of its tokens `(n,)`."""
    total = sum_by_group(old_logprobs - engine_logprobs, samples, count).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    return total.exp()[samples].to(old_logprobs.dtype)


def bounded(weights: Tensor, low: float, high: float, mode: Literal["clip", "mask"]) -> ImportanceWeights:
    """`weights` `(n,)`, clipped to [`low`, `high`] or set to 0 outside of it.

    The loss is still divided by the number of all tokens: a division by those inside the bounds would scale up their
    gradient.
    """
    outside = (weights < low) | (weights > high)
    inside = weights.clamp(low, high) if mode == "clip" else weights.masked_fill(outside, 0.0)
    return ImportanceWeights(inside, outside)


@component
@dataclass(frozen=True)
class EngineCorrection:
    """Bounded importance weights of tokens or whole answers.

    Truncated importance sampling (Yao et al. 2025, fengyao.notion.site/off-policy-rl) is level `token`, mode `clip`
    and max 2. IcePop (Ling team 2025, arXiv 2510.18855) is level `token`, mode `mask`, min 0.5 and max 5.
    """

    level: Literal["token", "sequence"]
    """`token`: one weight per token. `sequence`: one weight per answer, unbiased inside the bounds, of a variance that
    grows with the answer's length."""
    mode: Literal["clip", "mask"]
    """`clip`: weights stay within the bounds. `mask`: tokens outside the bounds do not train."""
    max: Annotated[float, Interval(ge=1, le=1e6)]
    """Upper bound of w, at least 1."""
    min: Share = 0.0
    """Lower bound of w, in [0, 1]. The default sets none, as truncated importance sampling does."""

    def __post_init__(self) -> None:
        if self.level not in ("token", "sequence") or self.mode not in ("clip", "mask"):
            raise ValueError(f"correction: level {self.level}, mode {self.mode}; give token or sequence, clip or mask")
        if not 0 <= self.min <= 1 <= self.max < math.inf:
            raise ValueError(f"correction: min {self.min}, max {self.max}; bounds lie on either side of 1")

    def __call__(self, old_logprobs: Tensor, engine_logprobs: Tensor, samples: Tensor, count: int) -> ImportanceWeights:
        """Weights of tokens from the trainer's and the engine's log-probabilities, `(n,)` each.

        `samples` `(n,)` int64 in [0, `count`) is the answer of each token.
        """
        old_logprobs = old_logprobs.detach()
        if self.level == "token":
            weights = token_weights(old_logprobs, engine_logprobs)
        else:
            weights = sequence_weights(old_logprobs, engine_logprobs, samples, count)
        return bounded(weights, self.min, self.max, self.mode)
