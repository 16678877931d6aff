"""The tokens that an answer may continue with: those its grammar allows, less tokens that are banned in all answers.

The sampler and the trainer that scores the samples must agree on them: a log-probability is of the distribution that
the token was sampled from.
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

from framework.model.processor import OPTIONAL_SENSOR_TOKENS, SENSOR_TOKENS

MEDIA_TOKENS = ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>", *SENSOR_TOKENS)
"""Media tokens: one without media breaks the multimodal positions."""
BANNED_TOKENS = (*MEDIA_TOKENS, "<|im_start|>", "<|endoftext|>")
"""Tokens that no answer may contain; an answer ends with the end of turn only."""
COMPILED_COPIES = 16
"""How often each grammar is compiled: copies of one compiled matcher share a lock, on which threads would wait."""


class GrammarMatchers:
    """The matchers of a batch of answers that grow token by token.

    Args:
        tokenizer: The tokenizer.
        grammars: A Lark grammar (llguidance's dialect) or None for each answer.
        vocabulary: Size of the vocabulary, spare rows included.
        device: Device of the masks.

    Raises `ValueError` for a grammar that does not compile.
    """

    def __init__(self, tokenizer: Any, grammars: Sequence[str | None], vocabulary: int, device: torch.device) -> None:
        self.end = tokenizer.eos_token_id
        self.done = [False] * len(grammars)
        guide = _guide(tokenizer, vocabulary) if any(grammars) else None
        self.matchers = [None if grammar is None else _matcher(guide, grammar) for grammar in grammars]
        self.bits = llguidance.numpy.allocate_token_bitmask(len(grammars), vocabulary)
        self.always_banned = torch.from_numpy(_always_banned(tokenizer, vocabulary)).to(device)

    def banned_mask(self, rows: Sequence[int] | None = None) -> Tensor:
        """Which tokens may not come next in `rows` (None: all), `(n, v)` bool; in a row that is done only those banned
        in all answers.
        """
        rows = range(len(self.matchers)) if rows is None else rows
        for place, row in enumerate(rows):
            matcher = self.matchers[row]
            if matcher is None or self.done[row]:
                self.bits[place] = -1
            else:
                llguidance.numpy.fill_next_token_bitmask(matcher, self.bits, place)
        return self._banned(self.bits[: len(rows)])

    def banned_masks(self, drafts: Sequence[tuple[int, Sequence[int]]]) -> Tensor:
        """Which tokens may not come next after none, one, two, ... tokens of each draft, a row that is not done and the
        tokens that follow in it, draft by draft: `(n, v)` bool. The rows stay as they are.
        """
        starts = list(itertools.accumulate((len(draft) + 1 for _, draft in drafts), initial=0))
        bits = llguidance.numpy.allocate_token_bitmask(starts[-1], len(self.always_banned))
        followed = []
        for (row, draft), start in zip(drafts, starts[:-1], strict=True):
            if (matcher := self.matchers[row]) is None:
                bits[start : start + len(draft) + 1] = -1
            elif draft:
                followed.append((matcher, start, list(draft)))
            else:
                llguidance.numpy.fill_next_token_bitmask(matcher, bits, start)
        if followed:
            llguidance.numpy.fill_next_token_bitmask_par_with_draft_tokens(_executor(), followed, bits)
        return self._banned(bits)

    def _banned(self, bits: np.ndarray) -> Tensor:
        allowed = np.unpackbits(bits.view(np.uint8), axis=1, bitorder="little")[:, : len(self.always_banned)]
        return torch.from_numpy(allowed == 0).to(self.always_banned.device) | self.always_banned

    def accept(self, row: int, token: int) -> bool:
        """Advance a row by its next token; returns False for a row that is done, whose tokens are padding.

        Raises `RuntimeError` where the grammar does not allow the token.
        """
        if self.done[row]:
            return False
        matcher = self.matchers[row]
        if token == self.end:
            self.done[row] = True
        elif matcher is not None:
            if not matcher.consume_token(token):
                raise RuntimeError(
                    f"grammar of row {row}: no token may follow the answer so far: {matcher.get_error()}"
                )
            self.done[row] = bool(matcher.is_stopped())
        return True


def compute_banned_mask(
    tokenizer: Any, grammars: Sequence[str | None], answers: Sequence[Sequence[int]], vocabulary: int
) -> Tensor:
    """The tokens that could not be sampled at each position of `answers`, answer by answer.

    Returns bitmasks `(n, ceil(vocabulary / 32))` int32 on the CPU, where bit `i` of word `w` is set if token 32 w + i
    is banned. Raises `RuntimeError` for an answer that could not be sampled.
    """
    starts = list(itertools.accumulate(map(len, answers), initial=0))
    bits = llguidance.numpy.allocate_token_bitmask(starts[-1], vocabulary)
    guide, end = _guide(tokenizer, vocabulary) if any(grammars) else None, tokenizer.eos_token_id
    drafts = []
    for number, (grammar, answer, start) in enumerate(zip(grammars, answers, starts[:-1], strict=True)):
        if grammar is not None and answer:
            matcher = _matcher(guide, grammar, number * COMPILED_COPIES // len(answers))
            draft = list(answer[: answer.index(end)] if end in answer else answer[:-1])
            if draft:
                drafts.append((matcher, start, draft))
            else:
                llguidance.numpy.fill_next_token_bitmask(matcher, bits, start)
    if drafts:
        llguidance.numpy.fill_next_token_bitmask_par_with_draft_tokens(_executor(), drafts, bits)
    banned_mask = np.bitwise_or(np.invert(bits, out=bits), _packed(_always_banned(tokenizer, vocabulary)), out=bits)
    tokens = np.fromiter(itertools.chain.from_iterable(answers), np.int64, starts[-1])
    wrong = (banned_mask[np.arange(len(tokens)), tokens // 32] >> (tokens % 32) & 1).astype(bool)
    if wrong.any():
        raise RuntimeError(
            f"answers contain tokens {np.unique(tokens[wrong]).tolist()} where their grammar or the list of banned "
            "tokens forbids them: give the engine the same ones"
        )
    return torch.from_numpy(banned_mask)


def banned_ids(tokenizer: Any, vocabulary: int) -> list[int]:
    """Ids of the tokens banned in all answers: `BANNED_TOKENS`, placeholders of optional sensors that the tokenizer
    knows, and the vocabulary's spare rows, which have no text.
    """
    known = tokenizer.get_added_vocab()
    optional = [known[token] for token in OPTIONAL_SENSOR_TOKENS if token in known]
    return [*tokenizer.convert_tokens_to_ids(list(BANNED_TOKENS)), *optional, *range(len(tokenizer), vocabulary)]


def _always_banned(tokenizer: Any, vocabulary: int) -> np.ndarray:
    """Which tokens are banned in all answers, `(vocabulary,)` bool."""
    banned = np.zeros(vocabulary, dtype=bool)
    banned[banned_ids(tokenizer, vocabulary)] = True
    return banned


def _packed(tokens: np.ndarray) -> np.ndarray:
    padded = np.pad(tokens, (0, -len(tokens) % 32))
    return np.packbits(padded, bitorder="little").view(np.int32)


@functools.cache
def _executor() -> Any:
    return llguidance.LLExecutor()


@functools.lru_cache(maxsize=4)
def _guide(tokenizer: Any, vocabulary: int) -> Any:
    return llguidance.hf.from_tokenizer(tokenizer, n_vocab=vocabulary)


def _matcher(guide: Any, grammar: str, copy_index: int = 0) -> Any:
    matcher = _compiled(guide, grammar, copy_index).deep_copy()
    if error := matcher.get_error():
        raise ValueError(f"grammar: {error}")
    return matcher


@functools.lru_cache(maxsize=8 * COMPILED_COPIES)
def _compiled(guide: Any, grammar: str, copy_index: int) -> Any:
    return llguidance.LLMatcher(guide, llguidance.LLMatcher.grammar_from_lark(grammar))
