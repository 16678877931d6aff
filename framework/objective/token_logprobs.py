"""Log-probabilities of sampled tokens and the policy's entropy, computed in chunks that bound the logits' memory."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from framework.objective.bitmask import unpack_bitmask
from framework.objective.vocabulary import local_logits, softmax_stats


class TokenScores(NamedTuple):
    """The policy's scores of `n` sampled tokens, float32 (float64 for float64 logits)."""

    logprobs: Tensor
    """Log-probability of each token, `(n,)`."""
    entropies: Tensor
    """Entropy of the distribution that each token was sampled from, `(n,)` in nats."""


def token_logprobs(
    hidden: Tensor,
    head: Callable[[Tensor], Tensor],
    target_ids: Tensor,
    chunk: int,
    temperature: float = 1.0,
    banned_mask: Tensor | None = None,
    entropy_gradient: bool = True,
) -> TokenScores:
    """Score tokens under the distribution they were sampled from, softmax(head(hidden) / temperature).

    Args:
        hidden: The hidden states `(n, width)` that predict the tokens.
        head: Maps `(m, width)` to logits `(m, vocabulary)`, whose columns may be sharded over ranks (see
            `framework.objective.vocabulary`).
        target_ids: The sampled tokens, `(n,)` int64.
        chunk: Positions whose logits exist at a time; the backward pass recomputes them.
        temperature: The sampler's temperature.
        banned_mask: The tokens that the sampler could not choose, `(n, words)` int32 (see
            `framework.objective.bitmask`); they get probability 0, a sampled one too: its log-probability is minus
            infinity. None: every token could be chosen.
        entropy_gradient: Whether entropies carry a gradient; without one they cost less memory and time.
    """
    score = functools.partial(_score, head, temperature=temperature, entropy_gradient=entropy_gradient)
    recomputed = functools.partial(checkpoint, score, use_reentrant=False, preserve_rng_state=False)
    chunks = []
    for start in range(0, max(len(target_ids), 1), chunk):
        span = slice(start, start + chunk)
        mask = None if banned_mask is None else banned_mask[span]
        # The backward pass starts with the last chunk: keeping its logits costs no more memory than recomputing them.
        score_chunk = recomputed if start + chunk < len(target_ids) else score
        chunks.append(score_chunk(hidden[span], target_ids[span], mask))
    return TokenScores(*(torch.cat(parts) for parts in zip(*chunks, strict=True)))


def _score(
    head: Callable[[Tensor], Tensor],
    hidden: Tensor,
    target_ids: Tensor,
    banned_mask: Tensor | None,
    temperature: float,
    entropy_gradient: bool,
) -> tuple[Tensor, Tensor]:
    logits, shard = local_logits(head(hidden))
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature
    if banned_mask is not None:
        logits = logits.masked_fill(unpack_bitmask(banned_mask, shard.start, shard.stop), -torch.inf)
    stats = softmax_stats(logits, target_ids, shard, entropy=True)
    return stats.logprobs, stats.entropies if entropy_gradient else stats.entropies.detach()
