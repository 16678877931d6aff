"""Answers of the live model: batched, cached, each row held to its grammar.

A loop of our own over the backbone's forward: transformers' `generate` takes either token ids or embeddings with
positions that it derives itself, and sensor tokens need embeddings *and* multimodal positions, differently in
releases 4.57 and 5.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import llguidance
import llguidance.hf
import llguidance.numpy
import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache

from framework.model.assembly import LanguageActionModel, media_of
from framework.model.backbone import SENSOR_TOKENS
from framework.scene.batch import MicroBatch

MEDIA_TOKENS = ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>", *SENSOR_TOKENS)
"""A media token without media breaks the multimodal positions."""
BANNED_TOKENS = (*MEDIA_TOKENS, "<|im_start|>", "<|endoftext|>")
"""What an answer must never hold; it ends with the end of turn alone."""


@torch.no_grad()
def generate(
    model: LanguageActionModel,
    prompts: MicroBatch,
    tokenizer: Any,
    grammars: Sequence[str | None],
    max_new_tokens: int,
    temperature: float = 0.0,
    seeds: Sequence[int] | None = None,
) -> list[str]:
    """The answer to each prompt of a left-padded micro-batch, without its end of turn.

    `grammars` holds a Lark grammar (llguidance's dialect) or None for each row: what a grammar forbids is never
    sampled, and a grammar that is complete ends the row. A row that spends `max_new_tokens` is returned as far as it
    came. Greedy at temperature 0, else sampled with one seed per row, so that a row's draws do not depend on its
    neighbours. Raises `ValueError` for a grammar that does not compile, `RuntimeError` for one that leaves nothing to
    say.
    """
    if temperature > 0 and seeds is None:
        raise ValueError("generate: a temperature needs seeds, one for each row")
    masks = _Masks(tokenizer, grammars, model.vocabulary, prompts["input_ids"].device)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds or ()]
    attention, places = prompts["attention_mask"], model.places(prompts)
    cache = DynamicCache()
    outputs = model.run_backbone(model.embed(prompts), attention, places, media_of(prompts), cache)
    place = places[1:].amax(dim=(0, 2))
    answers: list[list[int]] = [[] for _ in grammars]
    for _ in range(max_new_tokens):
        logits = masks.apply(model.head(outputs[0][:, -1]).float())
        chosen = _choose(logits, temperature, generators)
        for row, token in enumerate(chosen.tolist()):
            if masks.accept(row, token):
                answers[row].append(token)
        if masks.finished:
            break
        place = place + 1
        attention = torch.cat([attention, torch.ones_like(attention[:, :1])], dim=1)
        embeddings = model.backbone.get_input_embeddings()(chosen[:, None])
        outputs = model.run_backbone(embeddings, attention, _next_places(attention, place), {}, cache)
    return [tokenizer.decode(answer, skip_special_tokens=False) for answer in answers]


def _next_places(attention: Tensor, place: Tensor) -> Tensor:
    """Positions `(4, b, 1)` of one more text token: the running position, then multimodal RoPE's, which goes on from
    its maximum `place`.
    """
    running = attention.sum(dim=1) - 1
    return torch.stack([running, place, place, place])[..., None]


def _choose(logits: Tensor, temperature: float, generators: Sequence[torch.Generator]) -> Tensor:
    if temperature == 0:
        return logits.argmax(dim=-1)
    shares = (logits / temperature).softmax(dim=-1).cpu()
    drawn = [torch.multinomial(row, 1, generator=g) for row, g in zip(shares, generators, strict=True)]
    return torch.cat(drawn).to(logits.device)


class _Masks:
    """What each row may say next."""

    def __init__(self, tokenizer: Any, grammars: Sequence[str | None], vocabulary: int, device: torch.device) -> None:
        self.end = tokenizer.eos_token_id
        self.done = [False] * len(grammars)
        guide = _guide(tokenizer, vocabulary) if any(grammars) else None
        self.matchers = [None if grammar is None else _matcher(guide, grammar) for grammar in grammars]
        self.bits = llguidance.numpy.allocate_token_bitmask(len(grammars), vocabulary)
        self.never = torch.zeros(vocabulary, dtype=torch.bool, device=device)
        self.never[tokenizer.convert_tokens_to_ids(list(BANNED_TOKENS))] = True
        self.never[len(tokenizer) :] = True  # spare rows of the vocabulary have no text

    @property
    def finished(self) -> bool:
        return all(self.done)

    def apply(self, logits: Tensor) -> Tensor:
        """Logits `(b, v)` with what is not allowed at minus infinity."""
        for row, matcher in enumerate(self.matchers):
            if matcher is None or self.done[row]:
                self.bits[row] = -1
            else:
                llguidance.numpy.fill_next_token_bitmask(matcher, self.bits, row)
        allowed = np.unpackbits(self.bits.view(np.uint8), axis=1, bitorder="little")[:, : logits.shape[1]]
        refused = torch.from_numpy(allowed == 0).to(logits.device) | self.never
        return logits.masked_fill(refused, -torch.inf)

    def accept(self, row: int, token: int) -> bool:
        """Take note of a row's next token; whether it belongs to the answer."""
        if self.done[row]:
            return False
        matcher = self.matchers[row]
        if token == self.end:
            self.done[row] = True
            return False
        if matcher is not None:
            if not matcher.consume_token(token):
                raise RuntimeError(f"grammar of row {row}: nothing may follow what was said: {matcher.get_error()}")
            self.done[row] = bool(matcher.is_stopped())
        return True


@functools.lru_cache(maxsize=4)
def _guide(tokenizer: Any, vocabulary: int) -> Any:
    return llguidance.hf.from_tokenizer(tokenizer, n_vocab=vocabulary)


def _matcher(guide: Any, grammar: str) -> Any:
    matcher = _compiled(guide, grammar).deep_copy()
    if error := matcher.get_error():
        raise ValueError(f"grammar: {error}")
    return matcher


@functools.lru_cache(maxsize=64)
def _compiled(guide: Any, grammar: str) -> Any:
    return llguidance.LLMatcher(guide, llguidance.LLMatcher.grammar_from_lark(grammar))
