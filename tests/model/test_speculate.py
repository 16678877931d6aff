"""Several tokens in a pass are those of decoding one by one."""

from __future__ import annotations

import pytest
import torch

from framework.model.generate import sample
from framework.model.language_action import LanguageActionModel
from framework.model.speculate import guess, speculate
from tests.model.conftest import EVERYTHING, NOTHING, build, make_batch

PLAN = "start: accel{24}\naccel: <|accel_0|> | <|accel_1|> | <|accel_2|>\n"


@pytest.fixture(scope="module")
def lively() -> LanguageActionModel:
    """With stronger layers: else the tied embedding repeats the prompt's last token."""
    model = build()
    with torch.no_grad():
        for layer in model.backbone.model.language_model.layers.parameters():
            layer.mul_(8.0 if layer.ndim > 1 else 1.0)
    return model


@pytest.mark.parametrize(("grammar", "budget"), [(PLAN, 40), (PLAN, 7), (None, 12)])
@pytest.mark.parametrize("prompt", [EVERYTHING, NOTHING])
@pytest.mark.fast_cases(2)
def test_guessed_answers_are_those_of_one_by_one(
    lively: LanguageActionModel, prompt: tuple[str, int, tuple[str, ...]], grammar: str | None, budget: int
) -> None:
    batch, tokenizer, passes = make_batch(lively, [prompt]), lively.processor.tokenizer, list[int]()
    (expected,) = sample(lively, batch, tokenizer, [grammar], budget)
    hook = lively.backbone.model.register_forward_hook(lambda *_: passes.append(1))
    for guesses in (1, 8):
        passes.clear()
        (answer,) = speculate(lively, batch, tokenizer, [grammar], budget, guesses)
        assert (answer.tokens, answer.text, answer.complete) == (expected.tokens, expected.text, expected.complete)
        assert answer.logprobs == pytest.approx(expected.logprobs, abs=1e-4)
        assert len(passes) <= len(answer.tokens)
    hook.remove()
    if budget == 40:
        assert len(passes) < 0.8 * len(expected.tokens), "a plan that repeats itself is guessed"


def test_a_batch_is_guessed_row_by_row(lively: LanguageActionModel) -> None:
    """Prompts and answers of all lengths: rows that end early, one by itself, and wrong guesses in some alone."""
    given = [EVERYTHING, NOTHING, ("short", 0, ()), EVERYTHING]
    grammars = [PLAN, PLAN, 'start: "a"', PLAN.replace("24", "9")]
    batch, tokenizer, passes = make_batch(lively, given, side="left"), lively.processor.tokenizer, list[int]()
    expected = sample(lively, batch, tokenizer, grammars, 30)
    hook = lively.backbone.model.register_forward_hook(lambda *_: passes.append(1))
    answers = speculate(lively, batch, tokenizer, grammars, 30, 8)
    hook.remove()
    assert [(each.tokens, each.text, each.complete) for each in answers] == [
        (each.tokens, each.text, each.complete) for each in expected
    ]
    for answer, own in zip(answers, expected, strict=True):
        assert answer.logprobs == pytest.approx(own.logprobs, abs=1e-4)
    assert len(passes) < max(len(each.tokens) for each in expected)


def test_what_followed_the_longest_end_is_guessed_and_repeated() -> None:
    assert guess([1, 2, 3, 9, 2, 3], 2) == [9, 2]
    assert guess([1, 2, 7, 5, 2, 8, 1, 2], 1) == [7], "two tokens say more than the nearest one"
    assert guess([4, 6, 4, 6], 5) == [4, 6, 4, 6, 4]
    assert guess([5], 4) == guess([1, 2, 3], 4) == guess([], 4) == []
    assert guess([4, 4], 0) == []
