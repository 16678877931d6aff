"""The cameras' calibration in the model: its tokens reach the prompt, are learned, and are never answered."""

from __future__ import annotations

import functools

import pytest
import torch
import yaml

from framework.data.render.sensors import CalibrationInput
from framework.model.backbone import RandomBackbone
from framework.model.codecs.grammar import banned_ids
from framework.model.encoders.calibration import CalibrationEncoder
from framework.model.language_action import LanguageActionModel
from framework.scene.batch import MicroBatch
from framework.scene.world.generate import generate_scene
from tests.model.conftest import PRESET


@pytest.fixture(scope="module")
def model() -> LanguageActionModel:
    torch.manual_seed(0)
    backbone = RandomBackbone(yaml.safe_load(PRESET.read_text())["architecture"])
    return LanguageActionModel(backbone, {"calibration": functools.partial(CalibrationEncoder, grid=4)})


def _prompt(model: LanguageActionModel, turn: float = 0.0) -> MicroBatch:
    rows = CalibrationInput().rows(generate_scene(5))
    assert rows is not None
    text = CalibrationInput.placeholder * len(rows) + "Where to?"
    values = torch.from_numpy(rows)[None] + turn
    mask = torch.ones(values.shape[:2], dtype=torch.bool)
    encoded = model.processor.tokenizer([text], return_tensors="pt")
    ids = encoded["input_ids"]
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "mm_token_type_ids": torch.zeros_like(ids),
        "sensors": {"calibration": {"values": values, "mask": mask}},
    }


def test_what_the_model_says_depends_on_the_rig_and_is_learned(model: LanguageActionModel) -> None:
    hidden = model(_prompt(model))
    assert (hidden[0, -1] - model(_prompt(model, 0.3))[0, -1]).abs().max() > 1e-4
    target = torch.zeros(1, dtype=torch.int64)
    optimizer = torch.optim.AdamW(model.encoders.parameters(), lr=1e-2)
    losses = []
    for _ in range(8):
        loss = torch.nn.functional.cross_entropy(model.head(model(_prompt(model))[:, -1]), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] - 0.1, "the encoder alone changes what follows"


def test_its_placeholder_is_known_to_this_model_alone_and_never_answered(model: LanguageActionModel) -> None:
    tokenizer = model.processor.tokenizer
    number = tokenizer.convert_tokens_to_ids(CalibrationInput.placeholder)
    assert number in banned_ids(tokenizer, model.vocabulary)
    backbone = RandomBackbone(yaml.safe_load(PRESET.read_text())["architecture"])
    assert CalibrationInput.placeholder not in backbone.processor().tokenizer.get_vocab()
