"""What could not be drawn at each place of finished answers, against the sampler's own word for it."""

from __future__ import annotations

import random

import pytest
import torch

from framework.model.codecs.grammar import GrammarMatchers, compute_banned_mask
from framework.model.language_action import LanguageActionModel
from framework.objective.bitmask import unpack_bitmask

FORM = 'start: NUMBER (" " NUMBER)*\nNUMBER: /[0-9]{1,3}/\n'
ONE = 'start: "a" | "ab"\n'


def drawn(
    model: LanguageActionModel, grammar: str | None, most: int, seed: int
) -> tuple[list[int], list[torch.Tensor]]:
    """An answer of at most `most` tokens, and what was refused at each."""
    draw = random.Random(seed)
    form = GrammarMatchers(model.processor.tokenizer, [grammar], model.vocabulary, torch.device("cpu"))
    answer, refused = list[int](), list[torch.Tensor]()
    while len(answer) < most and not all(form.done):
        refused.append(form.banned_mask()[0])
        answer.append(draw.choice((~refused[-1]).nonzero()[:, 0].tolist()))
        form.accept(0, answer[-1])
    return answer, refused


def test_finished_answers_could_not_say_what_the_sampler_could_not(model: LanguageActionModel) -> None:
    """Answers that ended, were cut, have one token or none, with a grammar and without."""
    forms = [grammar for grammar in (FORM, ONE, None) for _ in range(8)]
    found = [drawn(model, grammar, index % 8, seed=index) for index, grammar in enumerate(forms)]
    answers = [answer for answer, _ in found]
    bits = compute_banned_mask(model.processor.tokenizer, forms, answers, model.vocabulary)
    expected = torch.stack([row for _, rows in found for row in rows])
    assert torch.equal(unpack_bitmask(bits, 0, model.vocabulary), expected)
    end = model.processor.tokenizer.eos_token_id
    assert {answer[-1] == end for answer in answers if answer} == {True, False}


def test_no_answers_refuse_nothing(model: LanguageActionModel) -> None:
    assert len(compute_banned_mask(model.processor.tokenizer, [], [], model.vocabulary)) == 0


@pytest.mark.parametrize("grammar", [FORM, None])
def test_an_answer_of_tokens_that_could_not_be_drawn_is_an_error(
    model: LanguageActionModel, grammar: str | None
) -> None:
    tokenizer = model.processor.tokenizer
    wrong = tokenizer.convert_tokens_to_ids("<|im_start|>")
    with pytest.raises(RuntimeError, match=rf"\[{wrong}\]"):
        compute_banned_mask(tokenizer, [grammar], [[wrong, wrong]], model.vocabulary)
