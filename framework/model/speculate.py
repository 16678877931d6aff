"""Greedy answers to one prompt, several tokens in a pass of the model.

What follows is guessed from the answer itself, as what followed when its last tokens were last written, and one pass
scores all guesses: speculative decoding (Leviathan et al. 2023, arXiv 2211.17192) with n-grams instead of a second
model (github.com/apoorvumang/prompt-lookup-decoding). A plan's controls hardly change from step to step, so that most
guesses are right. Tokens are those of decoding one by one, since only what the model itself writes is kept; where two
scores are as near as rounding, several positions in a pass may round otherwise than one, as a batch's rows may.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from framework.model.codecs.grammar import GrammarMatchers
from framework.model.generate import Completion, decoded, full_logits, prefill
from framework.model.language_action import LanguageActionModel
from framework.scene.batch import MicroBatch

LONGEST = 3
"""Tokens of the longest context that a guess follows from."""


@torch.no_grad()
def speculate(
    model: LanguageActionModel,
    prompt: MicroBatch,
    tokenizer: Any,
    grammar: str | None,
    max_new_tokens: int,
    guesses: int,
) -> Completion:
    """The greedy answer to one prompt.

    Args:
        model: The model; of no recurrent family, whose state cannot go back to before a wrong guess.
        prompt: A micro-batch of one row without padding.
        tokenizer: The tokenizer of the model's processor.
        grammar: A Lark grammar (llguidance's dialect), or None.
        max_new_tokens: Token budget; an answer that spends it is returned as it is.
        guesses: The most tokens that are guessed for a pass.

    Raises `ValueError` for a grammar that does not compile.
    """
    matchers = GrammarMatchers(tokenizer, [grammar], model.vocabulary, prompt["input_ids"].device)
    cache = model.new_cache()
    hidden, attention, position = prefill(model, prompt, cache, 1)
    tokens, logprobs, guessed = list[int](), list[float](), list[int]()
    while True:
        logits = full_logits(model.head(hidden)).float()
        for place, scores in enumerate(logits):
            row = scores.masked_fill(matchers.banned_mask()[0], -torch.inf)
            token = int(row.argmax())
            matchers.accept(0, token)
            tokens.append(token)
            logprobs.append(float(row.log_softmax(dim=-1)[token]))
            if matchers.finished or len(tokens) == max_new_tokens:
                return decoded(tokens, logprobs, matchers.done[0], tokenizer, matchers.end)
            if token != next(iter(guessed[place:]), None):
                break
        known = attention.shape[1] + len(tokens) - 1
        if wrong := len(logits) - 1 - place:
            cache.crop(-wrong)  # of the releases of transformers, only some take the length that stays
        guessed = allowed(matchers, guess(tokens, min(guesses, max_new_tokens - len(tokens) - 1)))
        hidden = _extend(model, [tokens[-1], *guessed], known, position + len(tokens), cache)


def guess(tokens: Sequence[int], most: int) -> list[int]:
    """At most `most` tokens that may follow `tokens`: those that followed their end, of up to `LONGEST` tokens, when it
    was last written before. What repeats is repeated.
    """
    for length in range(min(LONGEST, len(tokens) - 1), 0, -1):
        end = list(tokens[-length:])
        for start in range(len(tokens) - length - 1, -1, -1):
            if list(tokens[start : start + length]) == end:
                written = list(tokens)
                for place in range(most):
                    written.append(written[start + length + place])
                return written[len(tokens) :]
    return []


def allowed(matchers: GrammarMatchers, guessed: Sequence[int]) -> list[int]:
    """The guesses before the first that the grammar forbids."""
    matcher = matchers.matchers[0]
    return list(guessed if matcher is None else guessed[: matcher.validate_tokens(list(guessed))])


def _extend(model: LanguageActionModel, tokens: Sequence[int], known: int, position: Tensor, cache: Any) -> Tensor:
    """Hidden states `(n, d)` of `n` tokens after the `known` ones of the cache, the first at multimodal `position`
    `(1,)`.
    """
    device = position.device
    ids = torch.tensor([tokens], device=device)
    steps = torch.arange(len(tokens), device=device)
    rope = position + steps
    position_ids = torch.stack([known + steps, rope, rope, rope])[:, None]
    attention = torch.ones(1, known + len(tokens), dtype=torch.long, device=device)
    embeddings = model.backbone.get_input_embeddings()(ids)
    hidden: Tensor = model.run_backbone(embeddings, attention, position_ids, {}, cache)[0][0]
    return hidden
