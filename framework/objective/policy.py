"""The objective of reinforcement learning: a policy loss, a divergence, a correction and an aggregation, composed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from framework.objective.advantages import Advantages
from framework.objective.aggregation import Aggregation
from framework.objective.correction import EngineCorrection
from framework.objective.diagnostics import Diagnostics, diagnose, mismatch
from framework.objective.kl import KLPenalty
from framework.objective.policy_loss import PolicyLoss
from framework.objective.token_logprobs import TokenScores, token_logprobs


@dataclass(frozen=True)
class SampledTokens:
    """The `n` sampled tokens of a micro-batch's `s` answers, in whatever order padding or packing leaves them; an
    answer lies in one micro-batch as a whole.

    `samples` `(n,)` int64 in [0, s): the answer each token belongs to. `advantages` `(s,)`. Log-probabilities `(n,)` of
    the tokens: `old`, the trainer's before the batch's first update (None: this is the first update, they are the
    current ones); `engine`, as sampled; `reference`, the reference model's. `stale` `(n,)` bool: drawn by older weights
    than those of before the batch's first update (None: none is).
    """

    samples: Tensor
    advantages: Tensor
    old: Tensor | None = None
    engine: Tensor | None = None
    reference: Tensor | None = None
    stale: Tensor | None = None

    def __post_init__(self) -> None:
        for name in ("old", "engine", "reference", "stale"):
            given: Tensor | None = getattr(self, name)
            if given is not None and given.shape != self.samples.shape:
                raise ValueError(
                    f"sampled tokens: {name} is {tuple(given.shape)} for {len(self.samples)} tokens; give one value "
                    "for each sampled token"
                )


class PolicySum(NamedTuple):
    """A loss added up over a micro-batch: `total` is a scalar with gradient, to be multiplied by the step's scale."""

    total: Tensor
    diagnostics: Diagnostics


@dataclass(frozen=True)
class PolicyObjective:
    """loss = sum over tokens of a_t (w_t L_t + kl.weight KL_t - `entropy_weight` H_t) / denominator of the whole step,
    with a_t and the denominator from `aggregation`, w_t from `correction` (1 without), L_t from `loss`.

    One step, over all ranks:

    1. Once a batch, where whole groups are together: `rewards` less the divergence, where `kl.place` is reward
    (`kl.penalize`), then `advantages(rewards, groups)`, one for each answer. 2. `denominator =
    aggregation.denominator(tokens, answers)` of the tokens and answers summed over ranks and micro-batches, and `scale
    = loss_scale(denominator, ranks)` (see `framework.objective.normalisation`). 3. For each micro-batch: `scored =
    score(hidden, head, target_ids, banned_mask)` of the hidden states from which its tokens were sampled; `found =
    objective(scored, SampledTokens(...))`; backward from `found.total * scale`. 4. `found.diagnostics` added up,
    `.all_reduce(group).metrics()`; the step's loss is the sum of totals over the denominator.

    `old` and the reference's log-probabilities are `score(...).logprobs` without gradient, of the policy before the
    batch's first update and of the reference model. The latter is needed only where `needs_reference` says so, the
    former only from the second update of a batch on. The gradient does not depend on how answers are spread over ranks
    and micro-batches, nor on padding and packing.

    Stale tokens are part of pi_train / pi_engine, and so of `correction`. Without one the engine's log-probabilities
    are their `old`: the loss's own ratio and clip then count how the policy has moved since.

    `temperature` is the sampler's. `chunk` is the number of positions whose logits exist at a time.
    """

    advantages: Advantages
    loss: PolicyLoss
    aggregation: Aggregation
    kl: KLPenalty | None = None
    correction: EngineCorrection | None = None
    entropy_weight: float = 0.0
    temperature: float = 1.0
    chunk: int = 1024

    def __post_init__(self) -> None:
        if self.temperature <= 0:
            raise ValueError(f"objective.temperature: {self.temperature}; give the sampler's, above 0")
        if self.chunk < 1:
            raise ValueError(f"objective.chunk: {self.chunk} positions; give at least 1")

    @property
    def needs_reference(self) -> bool:
        """Whether a reference model's log-probabilities are used, in the loss or in the reward."""
        return self.kl is not None and self.kl.weight > 0

    def score(
        self, hidden: Tensor, head: Callable[[Tensor], Tensor], target_ids: Tensor, banned_mask: Tensor | None = None
    ) -> TokenScores:
        """See `token_logprobs`."""
        return token_logprobs(
            hidden,
            head,
            target_ids,
            self.chunk,
            self.temperature,
            banned_mask,
            entropy_gradient=self.entropy_weight != 0,
        )

    def __call__(self, scored: TokenScores, tokens: SampledTokens) -> PolicySum:
        """The summed loss of a micro-batch, which may have no tokens.

        Raises `ValueError` when the recipe asks for log-probabilities that are not given.
        """
        samples, count = tokens.samples, len(tokens.advantages)
        advantages = tokens.advantages[samples]
        before = old = scored.logprobs.detach() if tokens.old is None else tokens.old
        if self.correction is None and tokens.stale is not None:
            old = torch.where(tokens.stale, _given(tokens.engine, "engine", "stale tokens"), before)
        surrogate = self.loss(scored.logprobs, old, advantages, samples, count)
        each, outside, divergence = surrogate.loss, None, None
        if self.correction is not None:
            engine = _given(tokens.engine, "engine", "objective.correction")
            weight, outside = self.correction(before, engine, samples, count)
            each = each * weight
        if self.kl is not None and self.kl.weight > 0:
            divergence = self.kl(scored.logprobs, _given(tokens.reference, "reference", "objective.kl"))
            if self.kl.place == "loss":
                each = each + self.kl.weight * divergence
        if self.entropy_weight != 0:
            each = each - self.entropy_weight * scored.entropies
        total = (each * self.aggregation.weights(samples, count)).sum()
        seen = diagnose(scored, surrogate, advantages, before, tokens.engine, outside, tokens.stale, divergence)
        return PolicySum(total, seen)

    def mismatch(self, scored: TokenScores, tokens: SampledTokens) -> Diagnostics:
        """What the engine and the policy of now say of tokens that are not trained."""
        engine, outside = _given(tokens.engine, "engine", "mismatch"), None
        if self.correction is not None:
            _, outside = self.correction(scored.logprobs, engine, tokens.samples, len(tokens.advantages))
        return mismatch(scored.logprobs, engine, outside)


def _given(logprobs: Tensor | None, name: str, key: str) -> Tensor:
    if logprobs is None:
        raise ValueError(
            f"{key} needs the {name}'s log-probabilities, and there are none; give them, or set {key}: null"
        )
    return logprobs
