"""Log-probabilities of sampled tokens and the policy's entropy, in chunks: never all the logits at once."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from framework.objective.bitmask import holds, spelled_out
from framework.objective.vocabulary import share_of, softmax


class Scored(NamedTuple):
    """`logprobs` `(n,)` of the sampled tokens and `entropies` `(n,)` (nats) of the distributions they come from,
    float32 (float64 for float64 logits).
    """

    logprobs: Tensor
    entropies: Tensor


def token_logprobs(
    hidden: Tensor,
    head: Callable[[Tensor], Tensor],
    taken: Tensor,
    chunk: int,
    temperature: float = 1.0,
    banned: Tensor | None = None,
    entropy_gradient: bool = True,
) -> Scored:
    """Score the tokens `taken` `(n,)` int64 under softmax(head(hidden) / temperature), `hidden` `(n, width)`.

    It must be the distribution that was sampled from: the sampler's `temperature`, and the tokens that it could not
    take, `banned` `(n, words)` (see `framework.objective.bitmask`), at probability 0. `head` maps `(m, width)` to
    logits `(m, vocabulary)`, whose columns may be cut over ranks (see `framework.objective.vocabulary`); those of
    `chunk` positions exist at a time, and are computed once more in the backward pass. With `entropy_gradient` False
    the entropies are only to be looked at, which saves memory and time.

    Raises `ValueError` where a banned token was taken.
    """
    kept = functools.partial(_score, head, temperature=temperature, entropy_gradient=entropy_gradient)
    recomputed = functools.partial(checkpoint, kept, use_reentrant=False, preserve_rng_state=False)
    pieces = []
    for start in range(0, max(len(taken), 1), chunk):
        span = slice(start, start + chunk)
        refused = None if banned is None else banned[span]
        # The last chunk's backward comes first: keeping its logits costs no more memory than computing them again.
        score = recomputed if start + chunk < len(taken) else kept
        pieces.append(score(hidden[span], taken[span], refused))
    return Scored(*(torch.cat(parts) for parts in zip(*pieces, strict=True)))


def _score(
    head: Callable[[Tensor], Tensor],
    states: Tensor,
    taken: Tensor,
    refused: Tensor | None,
    temperature: float,
    entropy_gradient: bool,
) -> tuple[Tensor, Tensor]:
    if refused is not None:
        _check(refused, taken)
    logits, share = share_of(head(states))
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature
    if refused is not None:
        logits = logits.masked_fill(spelled_out(refused, share.start, share.stop), -torch.inf)
    found = softmax(logits, taken, share, entropy=True)
    return found.logprobs, found.entropies if entropy_gradient else found.entropies.detach()


def _check(refused: Tensor, taken: Tensor) -> None:
    wrong = holds(refused, taken)
    if wrong.any():
        raise ValueError(
            f"tokens {taken[wrong].unique().tolist()} were sampled and are banned: ban the same tokens in the engine "
            "and in the objective"
        )
