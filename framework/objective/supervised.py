"""Supervised losses as sums over tokens, so that one division by the step's global token count makes the mean exact.

Dividing each micro-batch by its own count and averaging afterwards weighs tokens by the company they keep; a sum does
not. The caller adds the sums of all micro-batches and ranks and divides once (see
`framework.objective.normalisation`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from framework.objective.vocabulary import local_logits, softmax_stats

IGNORED = -100
"""Label of positions from which nothing is learned."""


class LossSum(NamedTuple):
    """A loss added up over `tokens` supervised positions: `total` is a scalar with gradient, `correct` counts argmax
    hits.
    """

    total: Tensor
    tokens: int
    correct: Tensor


def supervised_tokens(labels: Tensor) -> int:
    """How many positions of `labels` `(b, t)` are learned: the first position of a row predicts nothing and never
    counts.
    """
    return int((labels[:, 1:] != IGNORED).sum())


def next_token_positions(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Where logits are needed, and their targets.

    Returns a mask `(b, t)`, True at the positions whose *next* token is supervised, and those tokens `(n,)`.
    Language-model heads are wide: computing logits at these positions alone saves most of their cost, as prompts and
    sensors are long and answers short.
    """
    mask = torch.zeros_like(labels, dtype=torch.bool)
    mask[:, :-1] = labels[:, 1:] != IGNORED
    return mask, labels[:, 1:][mask[:, :-1]]


class CrossEntropy:
    """Next-token cross-entropy over the assistant's tokens, in float32, in chunks that bound the memory of the logits.

    `chunk` is the number of positions whose logits exist at a time; they are computed once more in the backward pass.
    `label_smoothing` as in Szegedy et al. 2016 (arXiv 1512.00567), eq. 5 with a uniform prior.
    """

    def __init__(self, chunk: int = 4096, label_smoothing: float = 0.0) -> None:
        if chunk < 1:
            raise ValueError(f"objective.chunk: {chunk} positions; give at least 1")
        if not 0.0 <= label_smoothing < 1.0:
            raise ValueError(f"objective.label_smoothing: {label_smoothing}; give a share in [0, 1)")
        self.chunk = chunk
        self.label_smoothing = label_smoothing

    def __call__(self, hidden: Tensor, head: Callable[[Tensor], Tensor], targets: Tensor) -> LossSum:
        """Sum over `n` positions: `hidden` `(n, width)`, `head` maps it to logits `(n, vocabulary)`, whose
        columns may be cut over ranks (see `framework.objective.vocabulary`), `targets` `(n,)`.
        """
        kept = functools.partial(self._of_chunk, head)
        recomputed = functools.partial(checkpoint, kept, use_reentrant=False, preserve_rng_state=False)
        pieces = []
        for start in range(0, max(len(targets), 1), self.chunk):
            span = slice(start, start + self.chunk)
            # The last chunk's backward comes first: keeping its logits costs no more memory than computing them again.
            part = recomputed if start + self.chunk < len(targets) else kept
            pieces.append(part(hidden[span], targets[span]))
        totals, hits = zip(*pieces, strict=True)
        return LossSum(torch.stack(totals).sum(), len(targets), torch.stack(hits).sum())

    def _of_chunk(self, head: Callable[[Tensor], Tensor], states: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
        """The loss, and how often the largest logit is the right one."""
        logits, share = local_logits(head(states))
        logits = logits.float()
        if share.mesh is not None:
            found = softmax_stats(logits, wanted, share, mean=self.label_smoothing > 0)
            right, any_token = 1.0 - self.label_smoothing, self.label_smoothing
            return -(right * found.logprobs.sum() + any_token * found.mean.sum()), found.hits.sum()
        # Where a rank has all logits, torch's own kernel is the faster.
        total = F.cross_entropy(logits, wanted, reduction="sum", label_smoothing=self.label_smoothing)
        return total, (logits.detach().argmax(-1) == wanted).sum()
