"""The objective of reinforcement learning: policy loss, divergence, engine correction and aggregation combined."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import torch
from annotated_types import Interval
from torch import Tensor

from framework.objective.advantages import Advantages, GroupDecoupled
from framework.objective.aggregation import Aggregation
from framework.objective.correction import EngineCorrection
from framework.objective.diagnostics import Diagnostics, diagnose, mismatch
from framework.objective.kl import KLPenalty
from framework.objective.policy_loss import PolicyLoss
from framework.objective.token_logprobs import TokenScores, token_logprobs
from framework.recipe.component import component
from framework.recipe.ranges import PositiveCount, Weight


@dataclass(frozen=True)
class SampledTokens:
    """The `n` sampled tokens of a micro-batch's `s` answers, in whatever order padding or packing leaves them.

    All tokens of an answer are in the same micro-batch.
    """

    samples: Tensor
    """The answer of each token, `(n,)` int64 in [0, s)."""
    advantages: Tensor
    """The advantage of each answer, `(s,)`."""
    old_logprobs: Tensor | None = None
    """The trainer's log-probabilities before the batch's first update, `(n,)`. None: this is the first update, and the
    current ones are meant."""
    engine_logprobs: Tensor | None = None
    """The engine's log-probabilities, as sampled, `(n,)`."""
    reference_logprobs: Tensor | None = None
    """The reference model's log-probabilities, `(n,)`."""
    stale: Tensor | None = None
    """Whether older weights than those before the batch's first update sampled each token, `(n,)` bool. None: none."""

    def __post_init__(self) -> None:
        for name in ("old_logprobs", "engine_logprobs", "reference_logprobs", "stale"):
            values: Tensor | None = getattr(self, name)
            if values is not None and values.shape != self.samples.shape:
                raise ValueError(
                    f"sampled tokens: {name} is {tuple(values.shape)} for {len(self.samples)} tokens; give one value "
                    "for each sampled token"
                )


class PolicySum(NamedTuple):
    """The loss of a micro-batch, summed over its tokens."""

    total: Tensor
    """The weighted sum of token losses, a scalar with gradient, to be multiplied by the step's scale."""
    diagnostics: Diagnostics
    """Sums and maxima for the step's metrics."""


@component
@dataclass(frozen=True)
class PolicyObjective:
    """A policy-gradient objective:

        loss = sum_t a_t (w_t L_t + kl.weight KL_t - entropy_weight H_t) / denominator

    over all tokens t of a step. The weights a_t and the denominator come from `aggregation`, w_t from `correction` (1
    without one), L_t from `loss`, KL_t from `kl` where its place is the loss; H_t is the entropy.

    One step, over all ranks:

    1. Once per batch, for whole groups: subtract the divergence from the rewards where `kl.place` is reward
       (`kl.penalize`), then compute `advantages(rewards, groups)`, one per answer.
    2. `denominator = aggregation.denominator(tokens, answers)`, with the counts of tokens and answers summed over ranks
       and micro-batches; `scale = loss_scale(denominator, ranks)` (see `framework.objective.normalisation`).
    3. For each micro-batch: `scores = score(hidden, head, target_ids, banned_mask)` of the hidden states from which its
       tokens were sampled; `result = objective(scores, SampledTokens(...))`; backward from `result.total * scale`.
    4. Add up `result.diagnostics`, then `.all_reduce(group).metrics()`. The step's loss is the sum of totals divided by
       the denominator.

    The old and the reference log-probabilities are `score(...).logprobs` without gradient, of the policy before the
    batch's first update and of the reference model. The old ones are needed from the second update of a batch on, the
    reference's where `needs_reference` is true. The gradient does not depend on how answers are spread over ranks and
    micro-batches, nor on padding and packing.

    With a correction, stale tokens are part of pi_train / pi_engine like all others. Without one, the engine's
    log-probabilities replace their old ones: the loss's own ratio and clip then count the policy's change since.
    """

    advantages: Advantages | GroupDecoupled
    """Advantages from the rewards of a group, or from their parts."""
    loss: PolicyLoss
    """Loss of each token."""
    aggregation: Aggregation
    """Weights of tokens, and the denominator of their sum."""
    kl: KLPenalty | None = None
    """Penalty on the divergence from a reference model. None: no reference model."""
    correction: EngineCorrection | None = None
    """Importance weights against the mismatch between engine and trainer. None: none."""
    entropy_weight: Weight = 0.0
    """Factor of the entropy bonus, in units of loss per nat. At 0 entropies are computed for the log alone."""
    temperature: Annotated[float, Interval(ge=0.01, le=100)] = 1.0
    """The sampler's temperature: log-probabilities are of the distribution that was sampled from."""
    chunk: PositiveCount = 1024
    """Positions whose logits exist at a time; the backward pass recomputes them."""

    def __post_init__(self) -> None:
        if self.temperature <= 0:
            raise ValueError(f"objective.temperature: {self.temperature}; give the sampler's, above 0")
        if self.chunk < 1:
            raise ValueError(f"objective.chunk: {self.chunk} positions; give at least 1")
        if isinstance(self.advantages, GroupDecoupled) and self.kl is not None and self.kl.place == "reward":
            raise ValueError(
                "objective.kl.place: reward takes a divergence off the whole reward, and advantages=gdpo normalises "
                "its parts; give loss"
            )

    @property
    def needs_reference(self) -> bool:
        """Whether the loss or the reward uses a reference model's log-probabilities."""
        return self.kl is not None and self.kl.weight > 0

    def score(
        self, hidden: Tensor, head: Callable[[Tensor], Tensor], target_ids: Tensor, banned_mask: Tensor | None = None
    ) -> TokenScores:
        """Score the sampled tokens; see `token_logprobs`."""
        with_gradient = self.entropy_weight != 0
        return token_logprobs(
            hidden, head, target_ids, self.chunk, self.temperature, banned_mask, entropy_gradient=with_gradient
        )

    def __call__(self, scores: TokenScores, tokens: SampledTokens) -> PolicySum:
        """The summed loss of a micro-batch, which may have no tokens.

        Raises `ValueError` when the objective needs log-probabilities that are missing.
        """
        samples, count = tokens.samples, len(tokens.advantages)
        advantages = tokens.advantages[samples]
        old = behaviour = scores.logprobs.detach() if tokens.old_logprobs is None else tokens.old_logprobs
        if self.correction is None and tokens.stale is not None:
            behaviour = torch.where(tokens.stale, _require(tokens.engine_logprobs, "engine", "stale tokens"), old)
        losses = self.loss(scores.logprobs, behaviour, advantages, samples, count)
        loss, outside, divergence = losses.loss, None, None
        if self.correction is not None:
            engine = _require(tokens.engine_logprobs, "engine", "objective.correction")
            weight, outside = self.correction(old, engine, samples, count)
            loss = loss * weight
        if self.kl is not None and self.kl.weight > 0:
            divergence = self.kl(scores.logprobs, _require(tokens.reference_logprobs, "reference", "objective.kl"))
            if self.kl.place == "loss":
                loss = loss + self.kl.weight * divergence
        if self.entropy_weight != 0:
            loss = loss - self.entropy_weight * scores.entropies
        total = (loss * self.aggregation.weights(samples, count)).sum()
        diagnostics = diagnose(
            scores, losses, advantages, old, tokens.engine_logprobs, outside, tokens.stale, divergence
        )
        return PolicySum(total, diagnostics)

    def mismatch(self, scores: TokenScores, tokens: SampledTokens) -> Diagnostics:
        """The mismatch between the engine and the current policy on tokens that are not trained."""
        engine, outside = _require(tokens.engine_logprobs, "engine", "mismatch"), None
        if self.correction is not None:
            _, outside = self.correction(scores.logprobs, engine, tokens.samples, len(tokens.advantages))
        return mismatch(scores.logprobs, engine, outside)


def _require(logprobs: Tensor | None, name: str, key: str) -> Tensor:
    if logprobs is None:
        raise ValueError(
            f"{key} needs the {name}'s log-probabilities, and there are none; give them, or set {key}: null"
        )
    return logprobs
