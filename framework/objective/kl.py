"""How far the policy has moved from a reference, token by token (Schulman 2020, joschu.net/blog/kl-approx.html).

With d = log pi_ref - log pi of a token that pi sampled, k1 = -d, k2 = d^2 / 2 and k3 = e^d - d - 1 estimate
KL(pi || pi_ref). d is held within plus and minus 20, k3 below 10, as in verl.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from framework.objective.groups import sum_by_group

DISTANCE_LIMIT = 20.0
K3_LIMIT = 10.0


def k1(logprobs: Tensor, reference: Tensor) -> Tensor:
    """-d: without bias, and often below 0. Its gradient is that of log pi, which is 0 on average."""
    return -_distance(logprobs, reference)


def k2(logprobs: Tensor, reference: Tensor) -> Tensor:
    """d^2 / 2: its gradient is that of the divergence on average."""
    return _distance(logprobs, reference) ** 2 / 2


def k3(logprobs: Tensor, reference: Tensor) -> Tensor:
    """e^d - d - 1: without bias, never below 0, of little variance; GRPO's."""
    d = _distance(logprobs, reference)
    # e^d - 1 first: next to 1, a float32 d of 1e-3 has lost a fifth of its square, and the sign with it
    return (d.expm1() - d).clamp(max=K3_LIMIT)


def _distance(logprobs: Tensor, reference: Tensor) -> Tensor:
    return (reference - logprobs).clamp(-DISTANCE_LIMIT, DISTANCE_LIMIT)


ESTIMATORS = {"k1": k1, "k2": k2, "k3": k3}


@dataclass(frozen=True)
class KLPenalty:
    """`weight` times an estimate of the divergence: added to each token's loss, or taken off the answer's reward.

    With a weight of 0 no reference is needed. k1 in the loss is refused: it would move nothing but noise.
    """

    weight: float
    estimator: Literal["k1", "k2", "k3"] = "k3"
    place: Literal["loss", "reward"] = "loss"

    def __post_init__(self) -> None:
        if self.estimator not in ESTIMATORS or self.place not in ("loss", "reward") or self.weight < 0:
            raise ValueError(
                f"kl: estimator {self.estimator}, place {self.place}, weight {self.weight}; give one of k1, k2, k3, "
                "loss or reward, and a weight of 0 or more"
            )
        if (self.estimator, self.place) == ("k1", "loss"):
            raise ValueError("kl.estimator: k1 in the loss has no gradient on average; take k2 or k3, or place: reward")

    def __call__(self, logprobs: Tensor, reference: Tensor) -> Tensor:
        """The unweighted estimate of each token, `(n,)`."""
        return ESTIMATORS[self.estimator](logprobs, reference)

    def penalize(self, rewards: Tensor, logprobs: Tensor, reference: Tensor, samples: Tensor) -> Tensor:
        """`rewards` `(s,)` less `weight` times the sum over each answer's tokens; without gradient.

        `logprobs` and `reference` are `(n,)`, `samples` `(n,)` int64 in [0, s) says which answer a token belongs to.
        """
        spent = sum_by_group(self(logprobs, reference).detach(), samples, len(rewards))
        return rewards - (self.weight * spent).to(rewards.dtype)
