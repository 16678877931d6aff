"""Policy-gradient losses of single tokens, to be minimised; `framework.objective.aggregation` combines them.

All tensors are flat, `(n,)` over a micro-batch's sampled tokens. In the equations, A is the advantage of the token's
answer, sg[.] stops the gradient, and

    rho = pi / pi_old

is the ratio of the token's probability under the current policy to that before the batch's first update.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, NamedTuple, Protocol

import torch
from annotated_types import Interval
from torch import Tensor

from framework.objective.groups import group_sizes, sum_by_group
from framework.recipe.component import component
from framework.recipe.ranges import Share

UpperBound = Annotated[float, Interval(ge=0, le=1000)]
"""Distance of an upper bound from a ratio of 1."""
LOG_RATIO_LIMIT = 20.0
"""Log-ratios are clamped to plus and minus this: beyond it `exp` overflows before it tells anything."""


class TokenLosses(NamedTuple):
    """The losses of `n` tokens and what is logged of them."""

    loss: Tensor
    """Loss of each token, `(n,)`, with gradient."""
    ratio: Tensor
    """Ratio rho of each token, or of its answer, `(n,)`, without gradient."""
    clip_low: Tensor
    """Whether the lower bound clips the ratio, `(n,)` bool."""
    clip_high: Tensor
    """Whether the upper bound clips the ratio, `(n,)` bool."""
    dual_clip: Tensor
    """Whether the dual clip applies, `(n,)` bool."""


class PolicyLoss(Protocol):
    """A loss of each sampled token."""

    def __call__(
        self, logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, samples: Tensor, count: int
    ) -> TokenLosses:
        """The losses of `n` tokens; all tokens of an answer must be in the same call.

        Args:
            logprobs: Log-probabilities under the current policy, `(n,)`.
            old_logprobs: Log-probabilities before the batch's first update, `(n,)`.
            advantages: The advantage of each token's answer, `(n,)`.
            samples: The answer of each token, `(n,)` int64 in [0, `count`).
            count: Number of answers.
        """
        ...


def log_ratio(logprobs: Tensor, old_logprobs: Tensor) -> Tensor:
    """log rho, clamped to `LOG_RATIO_LIMIT` either way."""
    return (logprobs - old_logprobs).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)


def sequence_log_ratio(logprobs: Tensor, old_logprobs: Tensor, samples: Tensor, count: int) -> Tensor:
    """log s_t of GSPO-token (Zheng et al. 2025, arXiv 2507.18071, equation 14):

        s_t = sg[s] pi_t / sg[pi_t]
        s   = exp(1 / |o| sum_t log rho_t)

    Its value is that of the whole answer's ratio; its gradient is each token's own.
    """
    lengths = group_sizes(samples, count).clamp(min=1)
    mean = sum_by_group(logprobs.detach() - old_logprobs, samples, count) / lengths
    value = mean.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)[samples].to(logprobs.dtype)
    return value + (logprobs - logprobs.detach())


def clipped(ratio: Tensor, advantages: Tensor, low: float, high: float, dual: float | None = None) -> TokenLosses:
    """The clipped surrogate of PPO (Schulman et al. 2017, arXiv 1707.06347, equation 7), with the separate bounds of
    DAPO (Yu et al. 2025, arXiv 2503.14476, equation 10):

        L = -min(rho A, clip(rho, 1 - low, 1 + high) A)

    The dual clip (Ye et al. 2020, arXiv 1912.09729) bounds L by `dual` |A| where A < 0.

    The minimum equals a clamp of rho from above where A > 0, and from below (by the dual clip also from above) where
    A < 0. The gradient is 0 where the clamp applies.
    """
    cap = math.inf if dual is None else dual
    better, worse = advantages > 0, advantages < 0
    clamped = torch.where(better, ratio.clamp(max=1 + high), ratio.clamp(min=1 - low, max=cap))
    value = ratio.detach()
    return TokenLosses(
        -clamped * advantages,
        value,
        clip_low=worse & (value < 1 - low),
        clip_high=better & (value > 1 + high),
        dual_clip=worse & (value > cap),
    )


def clipped_weights(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, low: float | None, high: float
) -> TokenLosses:
    """The loss of CISPO (MiniMax-M1, 2025, arXiv 2506.13585, equations 4 and 5):

        L = -sg[clip(rho, 1 - low, 1 + high)] A log pi

    Every token keeps a gradient. With `low` None there is no lower bound.
    """
    ratio = log_ratio(logprobs, old_logprobs).detach().exp()
    lower, upper = -math.inf if low is None else 1 - low, 1 + high
    loss = -ratio.clamp(lower, upper) * advantages * logprobs
    return TokenLosses(loss, ratio, ratio < lower, ratio > upper, torch.zeros_like(ratio, dtype=torch.bool))


def reinforce(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor) -> TokenLosses:
    """The loss of REINFORCE (Williams 1992, doi 10.1007/BF00992696):

        L = -A log pi

    It is correct for one update per batch; `old_logprobs` only serves the logged ratio.
    """
    never = torch.zeros_like(logprobs, dtype=torch.bool)
    return TokenLosses(-advantages * logprobs, log_ratio(logprobs, old_logprobs).detach().exp(), never, never, never)


@component
@dataclass(frozen=True)
class PPOClip:
    """Clips the ratio of each token; see `clipped`."""

    low: Share
    """Distance of the lower bound from a ratio of 1, in [0, 1]."""
    high: UpperBound
    """Distance of the upper bound from a ratio of 1, at least 0."""
    dual: Annotated[float, Interval(gt=1, le=1e6)] | None = None
    """Cap on the ratio where the advantage is negative, above 1; 3 and 10 are common. None: no dual clip."""

    def __post_init__(self) -> None:
        _check_bounds(self.low, self.high)
        if self.dual is not None and self.dual <= 1:
            raise ValueError(f"loss.dual: {self.dual}; the dual clip is a ratio above 1, or null")

    def __call__(
        self, logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, samples: Tensor, count: int
    ) -> TokenLosses:
        """See `PolicyLoss`."""
        return clipped(log_ratio(logprobs, old_logprobs).exp(), advantages, self.low, self.high, self.dual)


@component
@dataclass(frozen=True)
class GSPO:
    """Clips the ratio of the whole answer (`sequence_log_ratio`); meant for the mean over sequences.

    Its bounds are about a thousandth of those of a token's ratio.
    """

    low: Share
    """Distance of the lower bound from a ratio of 1, in [0, 1]."""
    high: UpperBound
    """Distance of the upper bound from a ratio of 1, at least 0."""

    def __post_init__(self) -> None:
        _check_bounds(self.low, self.high)

    def __call__(
        self, logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, samples: Tensor, count: int
    ) -> TokenLosses:
        """See `PolicyLoss`."""
        ratio = sequence_log_ratio(logprobs, old_logprobs, samples, count).exp()
        return clipped(ratio, advantages, self.low, self.high)


@component
@dataclass(frozen=True)
class CISPO:
    """Uses the clipped ratio of each token as a weight without gradient; see `clipped_weights`."""

    high: UpperBound
    """Distance of the upper bound from a ratio of 1, as in the paper, verl and NeMo-RL: weights end at 1 + `high`.
    TRL's `epsilon_high` is the end itself, so that its 5 is 4 here."""
    low: Share | None = None
    """Distance of the lower bound from a ratio of 1, in [0, 1]. None: no lower bound, as in the paper's experiments."""

    def __post_init__(self) -> None:
        _check_bounds(self.low or 0.0, self.high)

    def __call__(
        self, logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, samples: Tensor, count: int
    ) -> TokenLosses:
        """See `PolicyLoss`."""
        return clipped_weights(logprobs, old_logprobs, advantages, self.low, self.high)


@component
@dataclass(frozen=True)
class Reinforce:
    """Has no ratio and no clip, for one update per batch; see `reinforce`."""

    def __call__(
        self, logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, samples: Tensor, count: int
    ) -> TokenLosses:
        """See `PolicyLoss`."""
        return reinforce(logprobs, old_logprobs, advantages)


def _check_bounds(low: float, high: float) -> None:
    if not 0 <= low <= 1 or high < 0:
        raise ValueError(f"loss: low {low}, high {high}; both are distances from a ratio of 1, low at most 1")
