"""The tensor plan says something of every module that has weights, and cuts what is worth cutting."""

from __future__ import annotations

from fnmatch import fnmatchcase

import pytest
import torch
from torch import nn

from framework.model.language_action import LanguageActionModel
from framework.model.tensor_plan import TENSOR_PLAN
from framework.parallel.fake_mesh import fake_mesh
from framework.parallel.tensor_plan import apply_tensor_plan
from framework.recipe.compose import compose
from framework.recipe.instantiate import instantiate


@pytest.fixture(scope="module")
def model() -> LanguageActionModel:
    """The recipe's model without weights."""
    task = instantiate(compose(["recipe=supervised"]))
    with torch.device("meta"):
        found: LanguageActionModel = task.model(special_tokens=task.data.special_tokens)
    return found


def test_every_module_with_weights_has_its_cut_and_nearly_all_weights_are_cut(model: LanguageActionModel) -> None:
    cut, replicated = 0, 0
    for name, module in model.named_modules():
        own = sum(p.numel() for p in module.parameters(recurse=False))
        if own:
            chosen = next((how for pattern, how in TENSOR_PLAN.items() if fnmatchcase(name, pattern)), None)
            assert chosen is not None, name
            replicated_kinds = ("head norm", "norm", "last norm", "replicated")
            assert isinstance(module, nn.Linear) or chosen in (*replicated_kinds, "words"), name
            is_cut = chosen not in replicated_kinds
            cut, replicated = (cut + own, replicated) if is_cut else (cut, replicated + own)
    assert cut > 50 * replicated


def test_every_pattern_is_of_some_module(model: LanguageActionModel) -> None:
    """Modules without weights, as attention, are not missed when a pattern misses them."""
    names = [name for name, _ in model.named_modules()]
    assert [pattern for pattern in TENSOR_PLAN if not any(fnmatchcase(name, pattern) for name in names)] == []


def test_a_module_that_the_plan_does_not_know_and_heads_that_do_not_divide_are_named(
    model: LanguageActionModel,
) -> None:
    with fake_mesh((1, 1, 16)) as mesh, pytest.raises(ValueError, match="16 does not divide the sizes") as error:
        apply_tensor_plan(model, TENSOR_PLAN, mesh["tensor"])
    said = str(error.value)
    assert "layers.0.self_attn.k_proj (8 heads)" in said, "its 1024 outputs do divide"
    assert "q_proj" not in said, "of which it has 16"
    model.backbone.model.visual.blocks[0].attn.gate = nn.Linear(8, 8)
    with fake_mesh((1, 1, 2)) as mesh, pytest.raises(ValueError, match=r"says nothing of .*blocks\.0\.attn\.gate;"):
        apply_tensor_plan(model, TENSOR_PLAN, mesh["tensor"])
