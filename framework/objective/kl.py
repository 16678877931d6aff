"""Estimates of the policy's divergence from a reference (Schulman 2020, joschu.net/blog/kl-approx.html).

For a token that pi sampled, with d = log pi_ref - log pi, three estimates of KL(pi || pi_ref) are

    k1 = -d
    k2 = d^2 / 2
    k3 = e^d - d - 1

As in verl, d is clamped to [-20, 20] and k3 to at most 10.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from framework.objective.groups import sum_by_group
from framework.recipe.component import component
from framework.recipe.ranges import Weight

DISTANCE_LIMIT = 20.0
K3_LIMIT = 10.0


def k1(logprobs: Tensor, reference_logprobs: Tensor) -> Tensor:
    """-d: unbiased, often negative. Its gradient is that of log pi, whose mean is 0."""
    return -_distance(logprobs, reference_logprobs)


def k2(logprobs: Tensor, reference_logprobs: Tensor) -> Tensor:
    """d^2 / 2: biased, but the mean of its gradient is that of the divergence."""
    return _distance(logprobs, reference_logprobs) ** 2 / 2


def k3(logprobs: Tensor, reference_logprobs: Tensor) -> Tensor:
    """e^d - d - 1: unbiased, never negative, of low variance. GRPO's choice."""
    d = _distance(logprobs, reference_logprobs)
    # expm1 first: next to 1, a float32 d of 1e-3 loses a fifth of its square, and the sign with it.
    return (d.expm1() - d).clamp(max=K3_LIMIT)


def _distance(logprobs: Tensor, reference_logprobs: Tensor) -> Tensor:
    return (reference_logprobs - logprobs).clamp(-DISTANCE_LIMIT, DISTANCE_LIMIT)


ESTIMATORS = {"k1": k1, "k2": k2, "k3": k3}


@component
@dataclass(frozen=True)
class KLPenalty:
    """A penalty on the divergence from the reference model, in each token's loss or in each answer's reward."""

    weight: Weight
    """Factor of the divergence. No reference model is needed when it is 0."""
    estimator: Literal["k1", "k2", "k3"] = "k3"
    """Estimate of the divergence. k1 is refused in the loss, where its mean gradient is 0. The default is GRPO's."""
    place: Literal["loss", "reward"] = "loss"
    """`loss`: added to each token's loss. `reward`: subtracted from each answer's reward."""

    def __post_init__(self) -> None:
        if self.estimator not in ESTIMATORS or self.place not in ("loss", "reward") or self.weight < 0:
            raise ValueError(
                f"kl: estimator {self.estimator}, place {self.place}, weight {self.weight}; give one of k1, k2, k3, "
                "loss or reward, and a weight of 0 or more"
            )
        if (self.estimator, self.place) == ("k1", "loss"):
            raise ValueError("kl.estimator: k1 in the loss has no gradient on average; take k2 or k3, or place: reward")

    def __call__(self, logprobs: Tensor, reference_logprobs: Tensor) -> Tensor:
        """The unweighted estimate for each token, `(n,)`."""
        return ESTIMATORS[self.estimator](logprobs, reference_logprobs)

    def penalize(self, rewards: Tensor, logprobs: Tensor, reference_logprobs: Tensor, samples: Tensor) -> Tensor:
        """Rewards `(s,)` minus `weight` times the divergence summed over each answer's tokens, without gradient.

        `logprobs` and `reference_logprobs` are `(n,)`; `samples` `(n,)` int64 in [0, s) is the answer of each token.
        """
        divergence = sum_by_group(self(logprobs, reference_logprobs).detach(), samples, len(rewards))
        return rewards - (self.weight * divergence).to(rewards.dtype)
