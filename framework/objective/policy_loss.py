"""Policy-gradient losses of single tokens, to be minimised. What becomes of them is
`framework.objective.aggregation`'s.

All tensors are flat, `(n,)` over a micro-batch's sampled tokens. rho = pi / pi_old is the ratio of a token's
probability now to that before the batch's first update.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from framework.objective.groups import sum_by_group

LOG_RATIO_LIMIT = 20.0
"""Log-ratios are held within plus and minus this: beyond it `exp` overflows sooner than it tells anything."""


class Surrogate(NamedTuple):
    """`loss` `(n,)` with gradient, and what is logged of it: `ratio` `(n,)` without gradient, and the tokens `(n,)`
    bool whose ratio was held at the `low` bound, the `high` bound, or the `dual` clip's.
    """

    loss: Tensor
    ratio: Tensor
    low: Tensor
    high: Tensor
    dual: Tensor


class PolicyLoss(Protocol):
    """A loss of each sampled token."""

    def __call__(self, logprobs: Tensor, old: Tensor, advantages: Tensor, samples: Tensor, count: int) -> Surrogate:
        """Of tokens with log-probabilities `logprobs`, `old` before the first update, and `advantages`, all `(n,)`.

        `samples` `(n,)` int64 in [0, `count`) says which answer each token belongs to; an answer is here as a whole.
        """
        ...


def log_ratio(logprobs: Tensor, old: Tensor) -> Tensor:
    """log rho, within `LOG_RATIO_LIMIT`."""
    return (logprobs - old).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)


def sequence_log_ratio(logprobs: Tensor, old: Tensor, samples: Tensor, count: int) -> Tensor:
    """log s_t, with s_t = sg[s] pi_t / sg[pi_t] and s = exp(mean over the answer's tokens of log rho_t): the whole
    answer's ratio in value, each token's own gradient. GSPO-token (Zheng et al. 2025, arXiv 2507.18071, equation 14).
    """
    lengths = torch.bincount(samples, minlength=count).clamp(min=1)
    mean = sum_by_group(logprobs.detach() - old, samples, count) / lengths
    whole = mean.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)[samples].to(logprobs.dtype)
    return whole + (logprobs - logprobs.detach())


def clipped(ratio: Tensor, advantages: Tensor, low: float, high: float, dual: float | None = None) -> Surrogate:
    """-min(rho A, clip(rho, 1 - low, 1 + high) A): PPO (Schulman et al. 2017, arXiv 1707.06347, equation 7) with DAPO's
    separate bounds (Yu et al. 2025, arXiv 2503.14476, equation 10); at most `dual` |A| where A < 0 (dual clip, Ye et
    al. 2020, arXiv 1912.09729).

    The minimum comes to holding rho from above where A > 0, and from below (and by the dual clip from above) where
    A < 0: there the gradient is 0.
    """
    most = math.inf if dual is None else dual
    better, worse = advantages > 0, advantages < 0
    held = torch.where(better, ratio.clamp(max=1 + high), ratio.clamp(min=1 - low, max=most))
    value = ratio.detach()
    return Surrogate(
        -held * advantages,
        value,
        low=worse & (value < 1 - low),
        high=better & (value > 1 + high),
        dual=worse & (value > most),
    )


def clipped_weights(logprobs: Tensor, old: Tensor, advantages: Tensor, low: float | None, high: float) -> Surrogate:
    """-sg[clip(rho, 1 - low, 1 + high)] A log pi: CISPO (MiniMax-M1, 2025, arXiv 2506.13585, equations 4 and 5). Every
    token keeps a gradient. `low` None: no lower bound.
    """
    ratio = log_ratio(logprobs, old).detach().exp()
    least, most = -math.inf if low is None else 1 - low, 1 + high
    loss = -ratio.clamp(least, most) * advantages * logprobs
    return Surrogate(loss, ratio, ratio < least, ratio > most, torch.zeros_like(ratio, dtype=torch.bool))


def reinforce(logprobs: Tensor, old: Tensor, advantages: Tensor) -> Surrogate:
    """-A log pi: REINFORCE (Williams 1992, doi 10.1007/BF00992696). Right for one update per batch; `old` is only
    logged.
    """
    never = torch.zeros_like(logprobs, dtype=torch.bool)
    return Surrogate(-advantages * logprobs, log_ratio(logprobs, old).detach().exp(), never, never, never)


@dataclass(frozen=True)
class PPOClip:
    """`clipped` by each token's ratio. `low` and `high` are distances from 1, `dual` a ratio (3 or 10; None: none)."""

    low: float
    high: float
    dual: float | None = None

    def __post_init__(self) -> None:
        _check_bounds(self.low, self.high)
        if self.dual is not None and self.dual <= 1:
            raise ValueError(f"loss.dual: {self.dual}; the dual clip is a ratio above 1, or null")

    def __call__(self, logprobs: Tensor, old: Tensor, advantages: Tensor, samples: Tensor, count: int) -> Surrogate:
        """See `PolicyLoss`."""
        return clipped(log_ratio(logprobs, old).exp(), advantages, self.low, self.high, self.dual)


@dataclass(frozen=True)
class GSPO:
    """`clipped` by the answer's ratio (`sequence_log_ratio`), whose bounds are a thousandth of a token's; meant for the
    mean over sequences.
    """

    low: float
    high: float

    def __post_init__(self) -> None:
        _check_bounds(self.low, self.high)

    def __call__(self, logprobs: Tensor, old: Tensor, advantages: Tensor, samples: Tensor, count: int) -> Surrogate:
        """See `PolicyLoss`."""
        ratio = sequence_log_ratio(logprobs, old, samples, count).exp()
        return clipped(ratio, advantages, self.low, self.high)


@dataclass(frozen=True)
class CISPO:
    """`clipped_weights`. `high` is a distance from 1, as in the paper, verl and NeMo-RL: weights end at 1 + `high`.
    TRL's `epsilon_high` is that end itself, so its 5 is 4 here.
    """

    high: float
    low: float | None = None

    def __post_init__(self) -> None:
        _check_bounds(self.low or 0.0, self.high)

    def __call__(self, logprobs: Tensor, old: Tensor, advantages: Tensor, samples: Tensor, count: int) -> Surrogate:
        """See `PolicyLoss`."""
        return clipped_weights(logprobs, old, advantages, self.low, self.high)


@dataclass(frozen=True)
class Reinforce:
    """See `reinforce`."""

    def __call__(self, logprobs: Tensor, old: Tensor, advantages: Tensor, samples: Tensor, count: int) -> Surrogate:
        """See `PolicyLoss`."""
        return reinforce(logprobs, old, advantages)


def _check_bounds(low: float, high: float) -> None:
    if not 0 <= low <= 1 or high < 0:
        raise ValueError(f"loss: low {low}, high {high}; both are distances from a ratio of 1, low at most 1")
