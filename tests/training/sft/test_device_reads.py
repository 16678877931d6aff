"""The host reads nothing from the device within a supervised step, and its numbers a step later."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from framework.model.language_action import LanguageActionModel
from framework.objective.supervised import CrossEntropy
from framework.scene.batch import MicroBatch
from framework.training.sft.prepare import PreparedStep, prepare_step
from tests.model.conftest import EVERYTHING, NOTHING, build, make_batch
from tests.training.device_reads import DeviceReads


@pytest.fixture(scope="module")
def model() -> LanguageActionModel:
    return build()


def batch_of(model: LanguageActionModel) -> MicroBatch:
    """Rows with images, every sensor and none, of which all words are learned."""
    batch = make_batch(model, [EVERYTHING, NOTHING, ("Where to?", 1, ("ego",))], side="right")
    batch["labels"] = batch["input_ids"].where(batch["attention_mask"].bool(), -100)
    batch["scenes"] = [None] * 3  # type: ignore[list-item]  # only counted
    return batch


def both_passes(model: LanguageActionModel, step: PreparedStep) -> torch.Tensor:
    """The passes of a step as `SupervisedModule` runs them."""
    total = torch.zeros((), device=next(model.parameters()).device)
    for micro in step.micro_batches:
        loss = CrossEntropy()(model(micro.batch, micro.sources), model.head, micro.targets)
        loss.total.backward()
        total += loss.total.detach()
    return total


def test_the_passes_of_a_prepared_step_read_nothing(model: LanguageActionModel) -> None:
    batch = batch_of(model)
    step = prepare_step(model, [batch, batch], missing=1)
    with DeviceReads() as reads:
        both_passes(model, step)
    assert reads.counts == Counter()


def test_the_counter_sees_what_an_unprepared_batch_reads(model: LanguageActionModel) -> None:
    batch = batch_of(model)
    with DeviceReads() as reads, torch.no_grad():
        model(batch, batch["labels"] >= 0)
    assert reads.counts["aten::nonzero"] > 0
    assert reads.counts["Tensor.tolist"] + reads.counts["aten::_local_scalar_dense"] > 0


def test_what_fills_up_learns_nothing_and_is_not_counted(model: LanguageActionModel) -> None:
    batch = batch_of(model)
    step = prepare_step(model, [batch], missing=2)
    assert (step.counted, len(step.micro_batches)) == (1, 3)
    assert [len(micro.targets) for micro in step.micro_batches[1:]] == [0, 0]
    tokens = int(batch["attention_mask"].sum())
    assert step.counts == (tokens - 3, tokens, 3, 0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch reports synchronisation on CUDA alone")
def test_on_a_gpu_torch_reports_no_synchronisation() -> None:
    model = build().to("cuda")
    batch = batch_of(model)
    for _ in range(2):  # the first pass allocates
        step = prepare_step(model, [batch], missing=0).to(torch.device("cuda"))
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            with torch.autocast("cuda", torch.bfloat16):
                both_passes(model, step)
        finally:
            torch.cuda.set_sync_debug_mode("default")
