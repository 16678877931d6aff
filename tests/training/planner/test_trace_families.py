"""What the memory trace says of each family's activations and what both passes really keep."""

from __future__ import annotations

import pytest
import torch
import yaml

from framework.model.backbone import RandomBackbone
from framework.model.language_action import LanguageActionModel
from framework.objective.supervised import CrossEntropy, next_token_positions
from framework.training.planner.trace import Allocations, MicroBatchShape, trace_micro_batch
from tests.parallel.tiny import PRESET, words


def build(preset: str) -> LanguageActionModel:
    backbone = RandomBackbone(yaml.safe_load(PRESET.with_stem(preset).read_text())["architecture"])
    return LanguageActionModel(backbone).train()


@pytest.mark.parametrize("preset", ["tiny", "tiny_moe", "tiny_qwen3_5", "tiny_qwen3_5_moe"])
def test_activations_are_those_that_the_passes_keep(preset: str) -> None:
    model, batch = build(preset), words(4, 128)
    positions, targets = next_token_positions(batch["labels"])
    known = [*model.parameters(), *model.buffers(), *(value for value in batch.values() if hasattr(value, "shape"))]
    with Allocations([*known, positions, targets]) as allocations:
        loss = CrossEntropy()(model(batch, positions), model.head, targets)
    kept = allocations.current
    loss.total.backward()
    shape = MicroBatchShape(4, 128, masked=False, patches=0, learned=len(targets), sensors={})
    with torch.device("meta"):
        planned = build(preset)
    traced = trace_micro_batch(planned, CrossEntropy(), shape, bf16=False, autocast=False)
    assert sum(part.activations for part in traced) == pytest.approx(kept, rel=0.1)
