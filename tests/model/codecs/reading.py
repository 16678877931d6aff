"""Answers held against a codec's grammar by llguidance, as generation does it: token by token."""

from __future__ import annotations

import functools
from typing import Any, Protocol

import llguidance
import llguidance.hf
from transformers import PreTrainedTokenizerFast

from tests.model.presets import TINY


class Spelled(Protocol):
    grammar: str


def accepts(codec: Spelled, text: str) -> bool:
    """Whether `text`, tokenised, is a complete answer of the codec's grammar."""
    tokenizer, guide = _guide(tuple(getattr(codec, "tokens", ())))
    matcher = llguidance.LLMatcher(guide, llguidance.LLMatcher.grammar_from_lark(codec.grammar))
    assert not matcher.get_error(), matcher.get_error()
    ids = tokenizer.encode(text, add_special_tokens=False)
    return bool(matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting())


@functools.cache
def _guide(tokens: tuple[str, ...]) -> tuple[Any, Any]:
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(TINY / "tokenizer.json"), eos_token="<|im_end|>")
    tokenizer.add_special_tokens({"additional_special_tokens": list(tokens)})
    return tokenizer, llguidance.hf.from_tokenizer(tokenizer, n_vocab=len(tokenizer))
