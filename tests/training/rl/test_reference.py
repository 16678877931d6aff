"""The reference of a divergence is the model that a stage began with, whatever was copied for it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.optim import AdamW

from framework.checkpoint.manifest import CheckpointError
from framework.checkpoint.store import CheckpointStore
from framework.model.freeze import set_trainable
from framework.model.language_action import LanguageActionModel
from framework.model.lora import adapter_parameters
from framework.parallel.mesh import DataRank
from framework.training.rl.reference import Reference
from tests.model.test_lora import build, learned
from tests.parallel.tiny import words

EMBEDDING = "backbone.model.language_model.embed_tokens.weight"


def logprobs(model: LanguageActionModel) -> Tensor:
    with torch.no_grad():
        return model.head(model(words(rows=2, length=16))).log_softmax(dim=-1)


def optimizer_of(model: LanguageActionModel) -> AdamW:
    return AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01)


def train(model: LanguageActionModel) -> None:
    """Two steps, so that both matrices of a pair have moved."""
    optimizer = optimizer_of(model)
    for _ in range(2):
        model.head(model(words(rows=2, length=16))).logsumexp(dim=-1).sum().backward()
        optimizer.step()
        optimizer.zero_grad()


def open_reference(folder: Path, model: LanguageActionModel) -> Reference:
    return Reference.from_store(CheckpointStore(folder), model, optimizer_of(model), DataRank())


@pytest.mark.parametrize(
    ("had_reference", "patterns"),
    [(False, []), (False, [EMBEDDING]), (True, [EMBEDDING])],
    ids=["new", "new copy", "lost"],
)
def test_a_resumed_stage_makes_no_reference_of_what_it_has_not_loaded(
    had_reference: bool, patterns: list[str], tmp_path: Path
) -> None:
    """The divergence was switched on, or the folder of its reference is lost."""
    model, store = build(), CheckpointStore(tmp_path / "reference-rl")
    set_trainable(model, patterns)
    with pytest.raises(CheckpointError, match=r"reference-rl: no reference .* restore the folder, leave objective\.kl"):
        Reference.from_store(store, model, optimizer_of(model), DataRank(), had_reference)
    assert store.committed() == []


def test_adapters_that_were_new_need_no_reference_on_a_resume(tmp_path: Path) -> None:
    model = build()
    set_trainable(model, [])
    resumed = Reference.from_store(
        CheckpointStore(tmp_path), model, optimizer_of(model), DataRank(), had_reference=True
    )
    assert resumed.adapter_free
    assert resumed.weights == {}


@pytest.mark.guarantee("Where only new adapters train, the reference of the KL term needs no copy")
def test_where_adapters_alone_train_no_copy_is_kept(tmp_path: Path) -> None:
    model = build()
    set_trainable(model, [])
    first, copied, reference = logprobs(model), Reference(model, adapter_free=False), open_reference(tmp_path, model)
    assert copied.weights.keys() == adapter_parameters(model).keys()
    assert reference.weights == {}
    assert CheckpointStore(tmp_path).committed() == []
    train(model)
    policy = logprobs(model)
    assert float((policy - first).abs().max()) > 0.01
    for each in (reference, copied):
        with each.active():
            assert torch.equal(logprobs(model), first)
        assert torch.equal(logprobs(model), policy)


@pytest.mark.parametrize(("fresh", "patterns"), [(True, [EMBEDDING]), (False, []), (False, [EMBEDDING])])
@pytest.mark.slow
def test_what_else_trains_and_adapters_that_were_trained_are_copied(
    fresh: bool, patterns: list[str], tmp_path: Path
) -> None:
    model = build() if fresh else learned(build())
    set_trainable(model, patterns)
    first, reference = logprobs(model), open_reference(tmp_path, model)
    pairs = set() if fresh else set(adapter_parameters(model))
    assert reference.weights.keys() == pairs | set(patterns)
    train(model)
    with reference.active():
        assert torch.equal(logprobs(model), first)

    again = build()
    set_trainable(again, patterns)
    resumed = open_reference(tmp_path, again)
    assert resumed.adapter_free is fresh
    train(again)
    with resumed.active():
        assert torch.equal(logprobs(again), first)
