"""What an answer may say next: its grammar, and tokens that no answer may hold.

The sampler and whoever scores what was sampled must agree on it: a log-probability is that of the distribution the
token was drawn from.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from typing import Any

import llguidance
import llguidance.hf
import llguidance.numpy
import numpy as np
import torch
from torch import Tensor

from framework.model.backbone import SENSOR_TOKENS

MEDIA_TOKENS = ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>", *SENSOR_TOKENS)
"""A media token without media breaks the multimodal positions."""
BANNED_TOKENS = (*MEDIA_TOKENS, "<|im_start|>", "<|endoftext|>")
"""What an answer must never hold; it ends with the end of turn alone."""
LANES = 16
"""Copies of a matcher take turns, for they share a lock: so many are compiled, that threads need not wait."""


class GrammarMatchers:
    """What each of several answers, which grow token by token, may say next.

    `grammars` holds a Lark grammar (llguidance's dialect) or None for each answer. Raises `ValueError` for one that
    does not compile.
    """

    def __init__(self, tokenizer: Any, grammars: Sequence[str | None], vocabulary: int, device: torch.device) -> None:
        self.end = tokenizer.eos_token_id
        self.done = [False] * len(grammars)
        guide = _guide(tokenizer, vocabulary) if any(grammars) else None
        self.matchers = [None if grammar is None else _matcher(guide, grammar) for grammar in grammars]
        self.bits = llguidance.numpy.allocate_token_bitmask(len(grammars), vocabulary)
        self.never = torch.from_numpy(_never(tokenizer, vocabulary)).to(device)

    @property
    def finished(self) -> bool:
        """Whether no answer goes on."""
        return all(self.done)

    def banned_mask(self) -> Tensor:
        """Which tokens `(b, v)` bool may not come next; a row that is done refuses the banned ones alone."""
        for row, matcher in enumerate(self.matchers):
            if matcher is None or self.done[row]:
                self.bits[row] = -1
            else:
                llguidance.numpy.fill_next_token_bitmask(matcher, self.bits, row)
        allowed = np.unpackbits(self.bits.view(np.uint8), axis=1, bitorder="little")[:, : len(self.never)]
        return torch.from_numpy(allowed == 0).to(self.never.device) | self.never

    def accept(self, row: int, token: int) -> bool:
        """Take note of a row's next token; whether it was drawn, and not only said to fill a row that is done.

        Raises `RuntimeError` where the grammar leaves nothing to say.
        """
        if self.done[row]:
            return False
        matcher = self.matchers[row]
        if token == self.end:
            self.done[row] = True
        elif matcher is not None:
            if not matcher.consume_token(token):
                raise RuntimeError(f"grammar of row {row}: nothing may follow what was said: {matcher.get_error()}")
            self.done[row] = bool(matcher.is_stopped())
        return True


def compute_banned_mask(
    tokenizer: Any, grammars: Sequence[str | None], answers: Sequence[Sequence[int]], vocabulary: int
) -> Tensor:
    """Which tokens could not be drawn at each place of `answers`, answer by answer: `(n, ceil(vocabulary / 32))` int32
    on the CPU, where bit `i` of word `w` is set for a token 32 w + i that could not.

    Raises `RuntimeError` for an answer that could not be drawn.
    """
    begins = list(itertools.accumulate(map(len, answers), initial=0))
    bits = llguidance.numpy.allocate_token_bitmask(begins[-1], vocabulary)
    guide, end = _guide(tokenizer, vocabulary) if any(grammars) else None, tokenizer.eos_token_id
    longer = []
    for number, (grammar, answer, begin) in enumerate(zip(grammars, answers, begins[:-1], strict=True)):
        if grammar is not None and answer:
            matcher = _matcher(guide, grammar, number * LANES // len(answers))
            said = list(answer[: answer.index(end)] if end in answer else answer[:-1])
            if said:
                longer.append((matcher, begin, said))
            else:
                llguidance.numpy.fill_next_token_bitmask(matcher, bits, begin)
    if longer:
        llguidance.numpy.fill_next_token_bitmask_par_with_draft_tokens(_executor(), longer, bits)
    refused = np.bitwise_or(np.invert(bits, out=bits), _packed(_never(tokenizer, vocabulary)), out=bits)
    taken = np.fromiter(itertools.chain.from_iterable(answers), np.int64, begins[-1])
    wrong = (refused[np.arange(len(taken)), taken // 32] >> (taken % 32) & 1).astype(bool)
    if wrong.any():
        raise RuntimeError(
            f"answers hold tokens {np.unique(taken[wrong]).tolist()} where their grammar or the list of banned tokens "
            "forbids them: let the engine draw with the same ones"
        )
    return torch.from_numpy(refused)


def _never(tokenizer: Any, vocabulary: int) -> np.ndarray:
    """Which tokens no answer may hold, `(vocabulary,)` bool."""
    never = np.zeros(vocabulary, dtype=bool)
    never[tokenizer.convert_tokens_to_ids(list(BANNED_TOKENS))] = True
    never[len(tokenizer) :] = True  # spare rows of the vocabulary have no text
    return never


def _packed(tokens: np.ndarray) -> np.ndarray:
    whole = np.pad(tokens, (0, -len(tokens) % 32))
    return np.packbits(whole, bitorder="little").view(np.int32)


@functools.cache
def _executor() -> Any:
    return llguidance.LLExecutor()


@functools.lru_cache(maxsize=4)
def _guide(tokenizer: Any, vocabulary: int) -> Any:
    return llguidance.hf.from_tokenizer(tokenizer, n_vocab=vocabulary)


def _matcher(guide: Any, grammar: str, lane: int = 0) -> Any:
    matcher = _compiled(guide, grammar, lane).deep_copy()
    if error := matcher.get_error():
        raise ValueError(f"grammar: {error}")
    return matcher


@functools.lru_cache(maxsize=8 * LANES)
def _compiled(guide: Any, grammar: str, lane: int) -> Any:
    return llguidance.LLMatcher(guide, llguidance.LLMatcher.grammar_from_lark(grammar))
