"""What the memory trace says of each family's activations and what both passes really keep."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml

from framework.model.backbone import RandomBackbone
from framework.model.language_action import LanguageActionModel
from framework.objective.supervised import CrossEntropy, next_token_positions
from framework.training.planner.batches import SampleStatistics
from framework.training.planner.memory import micro_batch_shape
from framework.training.planner.trace import Allocations, MicroBatchShape, trace_micro_batch
from tests.parallel.tiny import PRESET, words


def build(preset: str) -> LanguageActionModel:
    backbone = RandomBackbone(yaml.safe_load(PRESET.with_stem(preset).read_text())["architecture"])
    return LanguageActionModel(backbone).train()


@pytest.mark.parametrize("preset", ["tiny", "tiny_moe", "tiny_qwen3_5", "tiny_qwen3_5_moe"])
@pytest.mark.slow
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


@pytest.mark.parametrize("preset", ["tiny", "tiny_qwen3_5"])
def test_answers_behind_shared_prompts_are_planned_in_the_rows_that_compute_them(preset: str) -> None:
    prompt, answer, answers = 64, 64, 3  # all rows have lengths to which the planner rounds
    batch, model = words(2, prompt + answers * answer), build(preset)
    batch["shared_prefix"] = torch.arange(1, answers + 1).repeat_interleave(answer)
    batch["shared_prefix"] = torch.cat([torch.zeros(prompt, dtype=torch.int64), batch["shared_prefix"]]).repeat(2, 1)
    positions = batch["shared_prefix"] > 0
    targets = batch["input_ids"][positions]
    known = [*model.parameters(), *model.buffers(), *(value for value in batch.values() if hasattr(value, "shape"))]
    with Allocations([*known, positions, targets]) as allocations:
        loss = CrossEntropy()(model(batch, positions), model.head, targets)
    kept = allocations.current
    loss.total.backward()
    length = prompt + answers * answer
    statistics = SampleStatistics(length, 0, answers * answer, 0, [(1.0, length)], {})
    pipeline: Any = SimpleNamespace(global_batch=2, micro_batch=2, pack=None)
    with torch.device("meta"):
        planned = build(preset)
    shape, _ = micro_batch_shape(planned, pipeline, statistics, data_ranks=1, answers=answers)
    traced = trace_micro_batch(planned, CrossEntropy(), shape, bf16=False, autocast=False)
    assert sum(part.activations for part in traced) == pytest.approx(kept, rel=0.1)
