"""Batched, cached sampling from the live model, in which every row follows its grammar.

transformers' `generate` accepts either token ids or embeddings with position ids that it derives itself. Sensor tokens
need embeddings *and* multimodal position ids, in which releases 4.57 and 5 differ; hence this loop.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from framework.model.codecs.grammar import GrammarMatchers
from framework.model.language_action import LanguageActionModel
from framework.model.media import media_of
from framework.scene.batch import MicroBatch


class Completion(NamedTuple):
    """A sampled answer."""

    tokens: tuple[int, ...]
    """The sampled tokens, with the end of turn where it was sampled."""
    logprobs: tuple[float, ...]
    """Log-probability of each token under the distribution it was sampled from."""
    text: str
    """The decoded answer without the end of turn."""
    complete: bool
    """Whether the answer ended by itself; False: the token budget cut it."""


def generate(
    model: LanguageActionModel,
    prompts: MicroBatch,
    tokenizer: Any,
    grammars: Sequence[str | None],
    max_new_tokens: int,
    temperature: float = 0.0,
    seeds: Sequence[int] | None = None,
) -> list[str]:
    """The text of one answer to each prompt; see `sample`."""
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
) -> list[Completion]:
    """Sample `copies` answers to each prompt, prompt by prompt; each prompt is read once for all of them.

    Rows whose answers have ended are dropped once they are half: of long thoughts, a few are much longer than the rest.

    Args:
        model: The model.
        prompts: A left-padded micro-batch.
        tokenizer: The tokenizer of the model's processor.
        grammars: A Lark grammar (llguidance's dialect) or None for each prompt. What a grammar forbids is never
            sampled, and a complete grammar ends the answer.
        max_new_tokens: Token budget of an answer; one that spends it is returned as it is.
        temperature: Sampling temperature; greedy at 0.
        seeds: One seed per answer, needed at a temperature above 0. An answer's draws do not depend on the others.
        copies: Answers per prompt.

    Raises `ValueError` for a grammar that does not compile, and `RuntimeError` for one that allows no next token.
    """
    if temperature > 0 and (seeds is None or len(seeds) != copies * len(grammars)):
        raise ValueError(f"generate: a temperature needs seeds, one for each of {copies * len(grammars)} answers")
    device = prompts["input_ids"].device
    repeated = [grammar for grammar in grammars for _ in range(copies)]
    matchers, answers = GrammarMatchers(tokenizer, repeated, model.vocabulary, device), _Answers(len(repeated))
    rows = list(range(len(repeated)))  # the answer of each row of the batch
    draws = (_uniform(seeds or (), max_new_tokens) if temperature > 0 else torch.zeros(len(rows), 0)).to(device)
    cache = model.new_cache()
    hidden, attention, position = prefill(model, prompts, cache, copies)
    for length in range(max_new_tokens):
        logits = full_logits(model.head(hidden)).float() / (temperature or 1.0)
        logits = logits.masked_fill(matchers.banned_mask(rows), -torch.inf)
        logprobs = logits.log_softmax(dim=-1)
        tokens = _choose(logprobs, draws[:, length]) if temperature > 0 else logits.argmax(dim=-1)
        answers.add(matchers, rows, tokens, logprobs)
        going = [place for place, row in enumerate(rows) if not matchers.done[row]]
        if not going or length + 1 == max_new_tokens:
            break
        if 2 * len(going) <= len(rows):
            places = torch.tensor(going, device=device)
            cache.reorder_cache(places)
            attention, position, tokens, draws = (each[places] for each in (attention, position, tokens, draws))
            rows = [rows[place] for place in going]
        position = position + 1
        attention = torch.cat([attention, torch.ones_like(attention[:, :1])], dim=1)
        embeddings = model.backbone.get_input_embeddings()(tokens[:, None])
        position_ids = _next_position_ids(attention, position)
        hidden = model.run_backbone(embeddings, attention, position_ids, {}, cache)[0][:, -1]
    return answers.decode(tokenizer, matchers)


def full_logits(logits: Tensor) -> Tensor:
    """The logits `(b, vocabulary)` on every rank, also where they are sharded over the vocabulary."""
    return logits.full_tensor() if isinstance(logits, DTensor) else logits


def prefill(model: LanguageActionModel, prompts: MicroBatch, cache: Any, copies: int) -> tuple[Tensor, Tensor, Tensor]:
    """Run the prompts into `cache`, each repeated `copies` times.

    Returns, repeated likewise, the last hidden states `(b, d)`, the attention mask `(b, t)` and the largest multimodal
    position of each row `(b,)`.
    """
    attention, position_ids = prompts["attention_mask"], model.position_ids(prompts)
    outputs = model.run_backbone(model.embed(prompts), attention, position_ids, media_of(prompts), cache)
    hidden, position = outputs[0][:, -1], position_ids[1:].amax(dim=(0, 2))
    if copies > 1:
        rows = torch.arange(len(hidden), device=hidden.device).repeat_interleave(copies)
        cache.reorder_cache(rows)  # its method of repeating rows lacks recurrent layers
        hidden, attention, position = hidden[rows], attention[rows], position[rows]
    return hidden, attention, position


def _next_position_ids(attention: Tensor, position: Tensor) -> Tensor:
    """Position ids `(4, b, 1)` of one more text token: the running position, then multimodal RoPE's `position`."""
    running = attention.sum(dim=1) - 1
    return torch.stack([running, position, position, position])[..., None]


def _uniform(seeds: Sequence[int], count: int) -> Tensor:
    """`count` numbers in [0, 1) for each of `seeds`, from a generator of its own: `(b, count)` float64."""
    return torch.stack(
        [torch.rand(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) for seed in seeds]
    )


def _choose(logprobs: Tensor, draws: Tensor) -> Tensor:
    """One token `(b,)` of each row by inverse transform sampling: where the cumulative probability exceeds `draws`."""
    cumulative = logprobs.double().exp().cumsum(dim=-1)
    return torch.searchsorted(cumulative, (draws * cumulative[:, -1])[:, None], right=True)[:, 0]


class _Answers:
    """The answers while they grow."""

    def __init__(self, count: int) -> None:
        self.tokens: list[list[int]] = [[] for _ in range(count)]
        self.logprobs: list[list[float]] = [[] for _ in range(count)]

    def add(self, matchers: GrammarMatchers, rows: Sequence[int], tokens: Tensor, logprobs: Tensor) -> None:
        """Append `tokens` `(b,)` to those of the answers `rows` that are not done."""
        chosen = logprobs.gather(-1, tokens[:, None])[:, 0]
        for row, token, logprob in zip(rows, tokens.tolist(), chosen.tolist(), strict=True):
            if matchers.accept(row, token):
                self.tokens[row].append(token)
                self.logprobs[row].append(logprob)

    def decode(self, tokenizer: Any, matchers: GrammarMatchers) -> list[Completion]:
        """The answers with their text."""
        return [
            decoded(tokens, logprobs, done, tokenizer, matchers.end)
            for tokens, logprobs, done in zip(self.tokens, self.logprobs, matchers.done, strict=True)
        ]


def decoded(tokens: Sequence[int], logprobs: Sequence[float], done: bool, tokenizer: Any, end: int) -> Completion:
    """An answer with its text, which leaves out the token `end`."""
    content = tokens[:-1] if tokens and tokens[-1] == end else tokens
    text = tokenizer.decode(content, skip_special_tokens=False)
    return Completion(tuple(tokens), tuple(logprobs), text, done)
