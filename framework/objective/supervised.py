"""Supervised losses as sums over tokens: one division by the step's global token count makes the mean exact.

A division of each micro-batch by its own count, averaged afterwards, would weigh a token by the number of tokens in its
micro-batch. The caller adds the sums of all micro-batches and ranks and divides once (see
`framework.objective.normalisation`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Annotated, NamedTuple

import torch
from annotated_types import Interval
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from framework.objective.vocabulary import local_logits, softmax_stats
from framework.recipe.component import component
from framework.recipe.ranges import PositiveCount
from framework.scene.batch import IGNORE_INDEX


class LossSum(NamedTuple):
    """A loss summed over supervised positions."""

    total: Tensor
    """The sum, a scalar with gradient."""
    tokens: int
    """Number of supervised positions."""
    correct: Tensor
    """How often the largest logit is that of the target, a scalar."""


def supervised_tokens(labels: Tensor) -> int:
    """Number of supervised positions of `labels` `(b, t)`.

    No position predicts the first token of a row, which therefore never counts.
    """
    return int((labels[:, 1:] != IGNORE_INDEX).sum())


def next_token_positions(labels: Tensor) -> tuple[Tensor, Tensor]:
    """The positions whose logits are needed, and their targets.

    Returns a mask `(b, t)`, True at the positions whose *next* token is supervised, and those tokens `(n,)`.
    Language-model heads are wide, prompts and sensors are long, answers are short: logits at these positions alone save
    most of the head's cost.
    """
    mask = torch.zeros_like(labels, dtype=torch.bool)
    mask[:, :-1] = labels[:, 1:] != IGNORE_INDEX
    return mask, labels[:, 1:][mask[:, :-1]]


@component
class CrossEntropy:
    """Next-token cross-entropy over the assistant's tokens, in float32, in chunks that bound the memory of the logits:

        L = sum over targets y of -(1 - label_smoothing) log p_y - label_smoothing / V sum_v log p_v

    with V the size of the vocabulary (Szegedy et al. 2016, arXiv 1512.00567, equation 5 with a uniform prior).

    Args:
        chunk: Positions whose logits exist at a time; the backward pass recomputes them.
        label_smoothing: Share of the target's probability that is spread over the vocabulary, in [0, 1).
    """

    def __init__(
        self, chunk: PositiveCount = 4096, label_smoothing: Annotated[float, Interval(ge=0, lt=1)] = 0.0
    ) -> None:
        if chunk < 1:
            raise ValueError(f"objective.chunk: {chunk} positions; give at least 1")
        if not 0.0 <= label_smoothing < 1.0:
            raise ValueError(f"objective.label_smoothing: {label_smoothing}; give a share in [0, 1)")
        self.chunk = chunk
        self.label_smoothing = label_smoothing

    def __call__(self, hidden: Tensor, head: Callable[[Tensor], Tensor], targets: Tensor) -> LossSum:
        """The loss summed over `n` positions.

        Args:
            hidden: Hidden states, `(n, width)`.
            head: Maps hidden states to logits `(n, vocabulary)`, whose columns may be sharded over ranks (see
                `framework.objective.vocabulary`). Where it has a `cross_entropy`, that computes the loss without them.
            targets: The next tokens, `(n,)`.
        """
        fused = getattr(head, "cross_entropy", None)  # of kernels that never hold all logits
        if fused is not None and (results := fused(hidden, targets, self.label_smoothing)) is not None:
            return LossSum(results[0], len(targets), results[1])
        direct = functools.partial(self._chunk_loss, head)
        recomputed = functools.partial(checkpoint, direct, use_reentrant=False, preserve_rng_state=False)
        chunks = []
        for start in range(0, max(len(targets), 1), self.chunk):
            span = slice(start, start + self.chunk)
            # The backward pass starts with the last chunk: keeping its logits costs no more memory than recomputing
            # them.
            chunk_loss = recomputed if start + self.chunk < len(targets) else direct
            chunks.append(chunk_loss(hidden[span], targets[span]))
        totals, correct = zip(*chunks, strict=True)
        return LossSum(torch.stack(totals).sum(), len(targets), torch.stack(correct).sum())

    def _chunk_loss(self, head: Callable[[Tensor], Tensor], hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """The summed loss of a chunk, and how often the largest logit is that of the target."""
        logits, shard = local_logits(head(hidden))
        logits = logits.float()
        if shard.mesh is not None:
            stats = softmax_stats(logits, targets, shard, mean=self.label_smoothing > 0)
            target_weight, uniform_weight = 1.0 - self.label_smoothing, self.label_smoothing
            total = -(target_weight * stats.logprobs.sum() + uniform_weight * stats.mean.sum())
            return total, stats.hits.sum()
        # torch's own kernel is faster where a rank has all logits.
        total = F.cross_entropy(logits, targets, reduction="sum", label_smoothing=self.label_smoothing)
        return total, (logits.detach().argmax(-1) == targets).sum()
