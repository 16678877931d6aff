"""Answers of the live model: batched, cached, each row held to its grammar.

A loop of our own over the backbone's forward: transformers' `generate` takes either token ids or embeddings with
positions that it derives itself, and sensor tokens need embeddings *and* multimodal positions, differently in
releases 4.57 and 5.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import DynamicCache

from framework.model.codecs.grammar import GrammarMatchers
from framework.model.language_action import LanguageActionModel, media_of
from framework.scene.batch import MicroBatch


class Answer(NamedTuple):
    """What was said: the drawn `tokens`, the end of turn included where it was drawn, their `logprobs` under the
    distribution they were drawn from, the `text` without the end of turn, and whether the answer is `complete` or was
    cut by the budget.
    """

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    text: str
    complete: bool


def generate(
    model: LanguageActionModel,
    prompts: MicroBatch,
    tokenizer: Any,
    grammars: Sequence[str | None],
    max_new_tokens: int,
    temperature: float = 0.0,
    seeds: Sequence[int] | None = None,
) -> list[str]:
    """The answer to each prompt of a left-padded micro-batch, without its end of turn; see `sample`."""
    return [answer.text for answer in sample(model, prompts, tokenizer, grammars, max_new_tokens, temperature, seeds)]


@torch.no_grad()
def sample(
    model: LanguageActionModel,
    prompts: MicroBatch,
    tokenizer: Any,
    grammars: Sequence[str | None],
    max_new_tokens: int,
    temperature: float = 0.0,
    seeds: Sequence[int] | None = None,
    copies: int = 1,
) -> list[Answer]:
    """`copies` answers to each prompt of a left-padded micro-batch, prompt by prompt. A prompt is read once for all of
    them.

    `grammars` holds a Lark grammar (llguidance's dialect) or None for each prompt: what a grammar forbids is never
    sampled, and a grammar that is complete ends the answer. One that spends `max_new_tokens` is returned as far as it
    came. Greedy at temperature 0, else sampled with one seed per answer, so that an answer's draws do not depend on its
    neighbours. Raises `ValueError` for a grammar that does not compile, `RuntimeError` for one that leaves nothing to
    say.
    """
    if temperature > 0 and (seeds is None or len(seeds) != copies * len(grammars)):
        raise ValueError(f"generate: a temperature needs seeds, one for each of {copies * len(grammars)} answers")
    device = prompts["input_ids"].device
    forms = GrammarMatchers(
        tokenizer, [grammar for grammar in grammars for _ in range(copies)], model.vocabulary, device
    )
    answers = _Answers(len(forms.done))
    draws = _uniform(seeds or (), max_new_tokens).to(device)
    cache = DynamicCache()
    hidden, attention, place = _read(model, prompts, cache, copies)
    for drawn in range(max_new_tokens):
        scores = (_all_words(model.head(hidden)).float() / (temperature or 1.0)).masked_fill(
            forms.banned_mask(), -torch.inf
        )
        logprobs = scores.log_softmax(dim=-1)
        chosen = _choose(logprobs, draws[:, drawn]) if temperature > 0 else scores.argmax(dim=-1)
        answers.add(forms, chosen, logprobs)
        if forms.finished or drawn + 1 == max_new_tokens:
            break
        place = place + 1
        attention = torch.cat([attention, torch.ones_like(attention[:, :1])], dim=1)
        embeddings = model.backbone.get_input_embeddings()(chosen[:, None])
        hidden = model.run_backbone(embeddings, attention, _next_places(attention, place), {}, cache)[0][:, -1]
    return answers.spelled(tokenizer, forms)


def _all_words(logits: Tensor) -> Tensor:
    """All logits, of one position a row, on every rank that has some of them."""
    return logits.full_tensor() if isinstance(logits, DTensor) else logits


def _read(
    model: LanguageActionModel, prompts: MicroBatch, cache: DynamicCache, copies: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Fill `cache` with the prompts, `copies` times each; the last hidden states `(b, d)`, the attention mask `(b, t)`
    and the last places `(b,)`, likewise.
    """
    attention, places = prompts["attention_mask"], model.places(prompts)
    outputs = model.run_backbone(model.embed(prompts), attention, places, media_of(prompts), cache)
    hidden, place = outputs[0][:, -1], places[1:].amax(dim=(0, 2))
    if copies > 1:
        cache.batch_repeat_interleave(copies)
        hidden, attention, place = (rows.repeat_interleave(copies, dim=0) for rows in (hidden, attention, place))
    return hidden, attention, place


def _next_places(attention: Tensor, place: Tensor) -> Tensor:
    """Positions `(4, b, 1)` of one more text token: the running position, then multimodal RoPE's, which goes on from
    its maximum `place`.
    """
    running = attention.sum(dim=1) - 1
    return torch.stack([running, place, place, place])[..., None]


def _uniform(seeds: Sequence[int], count: int) -> Tensor:
    """`count` numbers in [0, 1) for each of `seeds`, from a generator of its own: `(b, count)` float64."""
    rows = [torch.rand(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) for seed in seeds]
    return torch.stack(rows) if rows else torch.zeros(0, count, dtype=torch.float64)


def _choose(logprobs: Tensor, draws: Tensor) -> Tensor:
    """One token `(b,)` from each row's distribution: where the running sum of its shares passes `draws` `(b,)`."""
    passed = logprobs.double().exp().cumsum(dim=-1)
    return torch.searchsorted(passed, (draws * passed[:, -1])[:, None], right=True)[:, 0]


class _Answers:
    """The answers as they grow."""

    def __init__(self, count: int) -> None:
        self.tokens: list[list[int]] = [[] for _ in range(count)]
        self.logprobs: list[list[float]] = [[] for _ in range(count)]

    def add(self, forms: GrammarMatchers, chosen: Tensor, logprobs: Tensor) -> None:
        """Add the `chosen` tokens `(b,)` to the answers that go on."""
        said = logprobs.gather(-1, chosen[:, None])[:, 0]
        for row, (token, logprob) in enumerate(zip(chosen.tolist(), said.tolist(), strict=True)):
            if forms.accept(row, token):
                self.tokens[row].append(token)
                self.logprobs[row].append(logprob)

    def spelled(self, tokenizer: Any, forms: GrammarMatchers) -> list[Answer]:
        """The answers as text too."""
        found = []
        for tokens, logprobs, done in zip(self.tokens, self.logprobs, forms.done, strict=True):
            said = tokens[:-1] if tokens and tokens[-1] == forms.end else tokens
            text = tokenizer.decode(said, skip_special_tokens=False)
            found.append(Answer(tuple(tokens), tuple(logprobs), text, done))
        return found
