"""Out to plain transformers and back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoProcessor, Qwen3VLForConditionalGeneration

from framework.model.hf_export import FACTS, export
from framework.model.language_action import LanguageActionModel
from tests.model.conftest import EVERYTHING, build, make_batch
from tests.model.exports import load_export


def test_reloads_to_identical_logits(model: LanguageActionModel, tmp_path: Path) -> None:
    export(model, tmp_path)
    other = build(seed=1)
    batch = make_batch(model, [EVERYTHING])
    with torch.no_grad():
        logits = model.head(model(batch))
        assert not torch.equal(other.head(other(batch)), logits)
        load_export(tmp_path, other)
        assert torch.equal(other.head(other(batch)), logits)


def test_plain_transformers_loads_the_backbone_and_its_processor(model: LanguageActionModel, tmp_path: Path) -> None:
    export(model, tmp_path)
    plain = Qwen3VLForConditionalGeneration.from_pretrained(tmp_path).eval()
    processor = AutoProcessor.from_pretrained(tmp_path)
    batch = make_batch(model, [("Is a pedestrian ahead?", 2, ())])
    assert processor.tokenizer.decode(batch["input_ids"][0]) == model.processor.tokenizer.decode(batch["input_ids"][0])
    inputs = {key: value for key, value in batch.items() if key not in ("sensors", "attention_mask")}
    with torch.no_grad():
        theirs = plain(**inputs).logits
        torch.testing.assert_close(theirs, model.head(model(batch)), atol=1e-5, rtol=1e-4)


def test_generation_stops_where_trained_answers_end(model: LanguageActionModel, tmp_path: Path) -> None:
    export(model, tmp_path)
    plain = Qwen3VLForConditionalGeneration.from_pretrained(tmp_path).eval()
    end = AutoProcessor.from_pretrained(tmp_path).tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert end in plain.generation_config.eos_token_id
    answer = plain.generate(
        input_ids=torch.tensor([[1, 2, 3]]), max_new_tokens=5, do_sample=False,
        prefix_allowed_tokens_fn=lambda _, ids: [end] if len(ids) > 3 else [5],
    )  # fmt: skip
    assert answer[0, 3:].tolist() == [5, end]


def test_another_recipes_encoders_are_refused(model: LanguageActionModel, tmp_path: Path) -> None:
    export(model, tmp_path)
    facts = json.loads((tmp_path / FACTS).read_text())
    (tmp_path / FACTS).write_text(json.dumps({**facts, "encoders": ["sonar"]}))
    with pytest.raises(ValueError, match="sonar"):
        load_export(tmp_path, build())
