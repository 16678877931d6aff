"""Greedy answers, several tokens of each in a pass of the model.

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
    prompts: MicroBatch,
    tokenizer: Any,
    grammars: Sequence[str | None],
    max_new_tokens: int,
    guesses: int,
) -> list[Completion]:
    """The greedy answer to each prompt.

    Rows whose answers have ended are dropped once they are half.

    Args:
        model: The model; of no recurrent family, whose state cannot go back to before a wrong guess.
        prompts: A left-padded micro-batch.
        tokenizer: The tokenizer of the model's processor.
        grammars: A Lark grammar (llguidance's dialect) or None for each prompt.
        max_new_tokens: Token budget of an answer; one that spends it is returned as it is.
        guesses: The most tokens that are guessed for a pass.

    Raises `ValueError` for a grammar that does not compile.
    """
    matchers = GrammarMatchers(tokenizer, grammars, model.vocabulary, prompts["input_ids"].device)
    answers = [_Answer(row) for row in range(len(grammars))]
    cache = model.new_cache()
    hidden, attention, position = prefill(model, prompts, cache, 1)
    hidden, rows = hidden[:, None], answers
    while True:
        _take(model, hidden, rows, matchers, max_new_tokens)
        going = [place for place, row in enumerate(rows) if not row.ended]
        if not going:
            break
        width = hidden.shape[1]
        attention[:, attention.shape[1] - width :] = _kept(rows, width).to(attention)
        if wrong := width - max(rows[place].taken for place in going):
            cache.crop(-wrong)  # of the releases of transformers, only some take the length that stays
            attention = attention[:, :-wrong]
        if 2 * len(going) <= len(rows):
            places = torch.tensor(going, device=attention.device)
            cache.reorder_cache(places)
            attention, position, rows = attention[places], position[places], [rows[place] for place in going]
        for row in rows:
            row.guess(matchers, max_new_tokens, guesses)
        hidden, attention = _extend(model, rows, attention, position, cache)
    return [decoded(row.tokens, row.logprobs, matchers.done[row.number], tokenizer, matchers.end) for row in answers]


class _Answer:
    """An answer while it grows.

    Args:
        number: Its row among the matchers.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self.tokens: list[int] = []
        self.logprobs: list[float] = []
        self.guessed: list[int] = []
        self.ended = False
        self.taken = 0
        """How many positions of the last pass were the answer's: its newest token's, and right guesses'."""

    def guess(self, matchers: GrammarMatchers, max_new_tokens: int, most: int) -> None:
        """Guess at most so many of the tokens that follow."""
        made = [] if self.ended else guess(self.tokens, min(most, max_new_tokens - len(self.tokens) - 1))
        self.guessed = allowed(matchers, self.number, made) if made else []


def _take(
    model: LanguageActionModel,
    hidden: Tensor,
    rows: Sequence[_Answer],
    matchers: GrammarMatchers,
    max_new_tokens: int,
) -> None:
    """Append to each answer what the model writes after the `hidden` states `(b, n, d)` of its newest tokens: up to the
    first guess that is wrong, and the token in its place.
    """
    going = [(place, row) for place, row in enumerate(rows) if not row.ended]
    drafts = [(row.number, row.guessed) for _, row in going]
    places = [(place, step) for place, row in going for step in range(len(row.guessed) + 1)]
    where, steps = torch.tensor(places, device=hidden.device).unbind(dim=1)
    scores = full_logits(model.head(hidden[where, steps])).float()
    scores = scores.masked_fill(matchers.banned_masks(drafts), -torch.inf)
    best = scores.argmax(dim=-1)
    values = scores.log_softmax(dim=-1).gather(-1, best[:, None])[:, 0].tolist()
    written = iter(zip(best.tolist(), values, strict=True))
    for _, row in going:
        pairs = [next(written) for _ in range(len(row.guessed) + 1)]
        row.taken = 0
        for (token, logprob), guessed in zip(pairs, [*row.guessed, None], strict=True):
            matchers.accept(row.number, token)
            row.tokens.append(token)
            row.logprobs.append(logprob)
            row.taken += 1
            row.ended = matchers.done[row.number] or len(row.tokens) == max_new_tokens
            if token != guessed or row.ended:
                break


def _kept(rows: Sequence[_Answer], width: int) -> Tensor:
    """Which of the last `width` positions are the answers', `(b, width)` bool."""
    return torch.arange(width)[None] < torch.tensor([row.taken for row in rows])[:, None]


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


def allowed(matchers: GrammarMatchers, row: int, guessed: Sequence[int]) -> list[int]:
    """The guesses before the first that the row's grammar forbids."""
    matcher = matchers.matchers[row]
    return list(guessed if matcher is None else guessed[: matcher.validate_tokens(list(guessed))])


def _extend(
    model: LanguageActionModel, rows: Sequence[_Answer], attention: Tensor, position: Tensor, cache: Any
) -> tuple[Tensor, Tensor]:
    """Compute each answer's newest token and its guesses, padded on the right to the longest.

    Returns the hidden states `(b, n, d)`, and the attention mask `(b, t + n)`. `position` `(b,)` is the largest
    multimodal position of each prompt.
    """
    device, width = attention.device, 1 + max(len(row.guessed) for row in rows)
    drafts = [[row.tokens[-1], *row.guessed] for row in rows]
    ids = torch.tensor([draft + [draft[-1]] * (width - len(draft)) for draft in drafts], device=device)
    real = torch.tensor([[step < len(draft) for step in range(width)] for draft in drafts], device=device)
    steps = torch.arange(width, device=device)
    known = attention.sum(dim=1)[:, None]
    rope = position[:, None] + torch.tensor([[len(row.tokens)] for row in rows], device=device) + steps
    position_ids = torch.stack([known + steps, rope, rope, rope])
    attention = torch.cat([attention, real.to(attention)], dim=1)
    embeddings = model.backbone.get_input_embeddings()(ids)
    hidden: Tensor = model.run_backbone(embeddings, attention, position_ids, {}, cache)[0]
    return hidden, attention
