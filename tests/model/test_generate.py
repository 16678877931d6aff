"""Answers: cached as uncached, batched as alone, and held to their grammar."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from framework.model.codecs.grammar import BANNED_TOKENS
from framework.model.generate import generate
from framework.model.language_action import LanguageActionModel
from tests.model.conftest import EVERYTHING, NOTHING, make_batch

SOME = ("Which way?", 1, ("ego", "radar"))
FORM = 'start: step{3}\nstep: accel " " NUMBER\naccel: <|accel_0|> | <|accel_2|>\nNUMBER: /[0-9]\\.[0-9]/\n'


def test_the_cache_changes_nothing(model: LanguageActionModel) -> None:
    tokenizer = model.processor.tokenizer
    batch = make_batch(model, [EVERYTHING, SOME])
    answers = generate(model, batch, tokenizer, [None, None], 10)
    banned = tokenizer.convert_tokens_to_ids(list(BANNED_TOKENS))
    chosen = []
    with torch.no_grad():
        for _ in range(10):
            logits = model.head(model(batch)[:, -1])
            logits[:, banned] = -torch.inf
            logits[:, len(tokenizer) :] = -torch.inf
            chosen.append(logits.argmax(-1))
            for key, value in (("input_ids", chosen[-1]), ("attention_mask", 1), ("mm_token_type_ids", 0)):
                column = torch.full_like(batch["input_ids"][:, :1], 1) * (
                    value[:, None] if key == "input_ids" else value
                )
                batch[key] = torch.cat([batch[key], column], dim=1)  # type: ignore[literal-required]
    expected = [tokenizer.decode(row).split(tokenizer.eos_token)[0] for row in torch.stack(chosen, dim=1)]
    assert answers == expected


def test_a_batch_answers_as_its_rows_alone(model: LanguageActionModel) -> None:
    samples = [EVERYTHING, NOTHING, SOME]
    tokenizer = model.processor.tokenizer
    together = generate(model, make_batch(model, samples), tokenizer, [None, FORM, None], 12)
    alone = [
        generate(model, make_batch(model, [sample]), tokenizer, [form], 12)[0]
        for sample, form in zip(samples, [None, FORM, None], strict=True)
    ]
    assert together == alone


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_rows_that_have_ended_are_dropped(
    model: LanguageActionModel, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples, forms, seeds = [EVERYTHING, NOTHING, SOME, NOTHING], [FORM, None, FORM, FORM], [5, 6, 7, 8]
    tokenizer, run, rows = model.processor.tokenizer, model.run_backbone, list[int]()

    def counted(embeddings: Tensor, *arguments: Any, **options: Any) -> Any:
        rows.append(len(embeddings))
        return run(embeddings, *arguments, **options)

    monkeypatch.setattr(model, "run_backbone", counted)
    together = generate(model, make_batch(model, samples), tokenizer, forms, 40, temperature, seeds)
    assert (rows[0], rows[-1]) == (4, 1)
    alone = [
        generate(model, make_batch(model, [sample]), tokenizer, [form], 40, temperature, [seed])[0]
        for sample, form, seed in zip(samples, forms, seeds, strict=True)
    ]
    assert together == alone


@pytest.mark.parametrize("temperature", [0.0, 5.0])
def test_the_grammar_holds_at_any_temperature(model: LanguageActionModel, temperature: float) -> None:
    batch = make_batch(model, [EVERYTHING, NOTHING])
    answers = generate(model, batch, model.processor.tokenizer, [FORM, FORM], 40, temperature, seeds=[3, 4])
    for answer in answers:
        parts = answer.replace("<|accel_0|>", "A").replace("<|accel_2|>", "A").split("A")[1:]
        assert len(parts) == 3
        assert all(len(part) == 4 and part[0] == " " and part[2] == "." for part in parts)


def test_a_spent_budget_returns_what_there_is(model: LanguageActionModel) -> None:
    answers = generate(model, make_batch(model, [NOTHING]), model.processor.tokenizer, [FORM], 3)
    assert answers[0].startswith("<|accel_")
    assert answers[0].count("<|accel_") < 3


def test_draws_belong_to_their_row(model: LanguageActionModel) -> None:
    tokenizer = model.processor.tokenizer
    pair = generate(model, make_batch(model, [SOME, NOTHING]), tokenizer, [None, None], 8, 1.0, seeds=[7, 8])
    again = generate(model, make_batch(model, [NOTHING]), tokenizer, [None], 8, 1.0, seeds=[8])
    assert pair[1] == again[0]
    assert pair != generate(model, make_batch(model, [SOME, NOTHING]), tokenizer, [None, None], 8, 1.0, seeds=[9, 10])
    assert not any(token in answer for token in BANNED_TOKENS for answer in pair)


def test_a_temperature_wants_seeds(model: LanguageActionModel) -> None:
    with pytest.raises(ValueError, match="seeds"):
        generate(model, make_batch(model, [NOTHING]), model.processor.tokenizer, [None], 1, temperature=1.0)


def test_a_bad_grammar_is_named(model: LanguageActionModel) -> None:
    with pytest.raises(ValueError, match="grammar"):
        generate(model, make_batch(model, [NOTHING]), model.processor.tokenizer, ["start: nowhere"], 1)


def test_a_grammar_of_banned_tokens_alone_is_an_error(model: LanguageActionModel) -> None:
    with pytest.raises(RuntimeError, match="grammar of row 0"):
        generate(model, make_batch(model, [NOTHING]), model.processor.tokenizer, ["start: <|lidar|>"], 1)
