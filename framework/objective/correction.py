"""What the engine samples is not quite what the trainer trains: other kernels, another precision. The weight
w = pi_train / pi_engine of what was sampled corrects for it, with pi_train the policy before the batch's first update.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

from torch import Tensor

from framework.objective.groups import sum_by_group
from framework.objective.policy_loss import LOG_RATIO_LIMIT, log_ratio


class Correction(NamedTuple):
    """`weight` `(n,)` by which each token's policy loss is multiplied, without gradient; `outside` `(n,)` bool where w
    was out of bounds.
    """

    weight: Tensor
    outside: Tensor


def token_weights(old: Tensor, engine: Tensor) -> Tensor:
    """w of each token, `(n,)`."""
    return log_ratio(old, engine).exp()


def sequence_weights(old: Tensor, engine: Tensor, samples: Tensor, count: int) -> Tensor:
    """w of the whole answer, the product over its tokens, at each of its tokens `(n,)`."""
    whole = sum_by_group(old - engine, samples, count).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    return whole.exp()[samples].to(old.dtype)


def bounded(weights: Tensor, least: float, most: float, mode: Literal["clip", "mask"]) -> Correction:
    """`weights` `(n,)` held within [`min`, `max`], or 0 beyond them.

    The loss is still divided by all tokens: dividing by those that are kept would make the others' gradient larger.
    """
    outside = (weights < least) | (weights > most)
    held = weights.clamp(least, most) if mode == "clip" else weights.masked_fill(outside, 0.0)
    return Correction(held, outside)


@dataclass(frozen=True)
class EngineCorrection:
    """Importance weights of tokens or whole answers, bounded.

    Truncated importance sampling (Yao et al. 2025, fengyao.notion.site/off-policy-rl) is `token`, `clip` and max 2;
    IcePop (Ling team 2025, arXiv 2510.18855) is `token`, `mask`, min 0.5 and max 5. `sequence` is without bias where
    nothing is out of bounds, and of larger variance the longer answers are.
    """

    level: Literal["token", "sequence"]
    mode: Literal["clip", "mask"]
    max: float
    min: float = 0.0

    def __post_init__(self) -> None:
        if self.level not in ("token", "sequence") or self.mode not in ("clip", "mask"):
            raise ValueError(f"correction: level {self.level}, mode {self.mode}; give token or sequence, clip or mask")
        if not 0 <= self.min <= 1 <= self.max < math.inf:
            raise ValueError(f"correction: min {self.min}, max {self.max}; bounds lie on either side of 1")

    def __call__(self, old: Tensor, engine: Tensor, samples: Tensor, count: int) -> Correction:
        """Of tokens with log-probabilities `old` (trainer's) and `engine`, `(n,)`, of the answers `samples` `(n,)`
        int64 in [0, `count`).
        """
        old = old.detach()
        if self.level == "token":
            weights = token_weights(old, engine)
        else:
            weights = sequence_weights(old, engine, samples, count)
        return bounded(weights, self.min, self.max, self.mode)
