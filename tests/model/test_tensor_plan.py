"""The tensor plan says something of every module that has weights, and cuts what is worth cutting."""

from __future__ import annotations

import functools
from fnmatch import fnmatchcase

import pytest
import torch
from torch import nn

from framework.model.language_action import LanguageActionModel
from framework.parallel.fake_mesh import fake_mesh
from framework.parallel.tensor_plan import apply_tensor_plan
from framework.recipe.compose import compose
from framework.recipe.instantiate import instantiate

CUT = {"qwen3_vl_2b": 50, "qwen3_vl_30b_a3b": 50, "qwen3_5_9b": 2, "qwen3_5_35b_a3b": 10}
"""How many times as many weights are cut as every rank has whole: the recurrent layers', for one."""


@functools.cache
def build(backbone: str) -> LanguageActionModel:
    """The recipe's model with `backbone`, without weights."""
    task = instantiate(compose(["recipe=supervised", f"model/backbone={backbone}"]))
    with torch.device("meta"):
        found: LanguageActionModel = task.model(special_tokens=task.data.special_tokens)
    return found


@pytest.fixture
def model() -> LanguageActionModel:
    return build("qwen3_vl_2b")


@pytest.mark.parametrize("backbone", CUT)
@pytest.mark.fast_cases(1)
def test_every_module_with_weights_has_its_cut_and_nearly_all_weights_are_cut(backbone: str) -> None:
    cut, replicated, model = 0, 0, build(backbone)
    for name, module in model.named_modules():
        own = sum(p.numel() for p in module.parameters(recurse=False))
        if own:
            chosen = next(
                (how for pattern, how in model.family.tensor_plan.items() if fnmatchcase(name, pattern)), None
            )
            assert chosen is not None, name
            replicated_kinds = ("head norm", "norm", "last norm", "replicated", "whole")
            assert isinstance(module, nn.Linear) or chosen in (*replicated_kinds, "words", "experts"), name
            is_cut = chosen not in replicated_kinds
            cut, replicated = (cut + own, replicated) if is_cut else (cut, replicated + own)
    assert cut > CUT[backbone] * replicated


@pytest.mark.parametrize("backbone", CUT)
def test_every_pattern_is_of_some_module(backbone: str) -> None:
    """Modules without weights, as attention, are not missed when a pattern misses them."""
    model = build(backbone)
    names = [name for name, _ in model.named_modules()]
    assert [
        pattern for pattern in model.family.tensor_plan if not any(fnmatchcase(name, pattern) for name in names)
    ] == []


def test_a_module_that_the_plan_does_not_know_and_heads_that_do_not_divide_are_named(
    model: LanguageActionModel,
) -> None:
    with fake_mesh((1, 1, 16)) as mesh, pytest.raises(ValueError, match="16 does not divide the sizes") as error:
        apply_tensor_plan(model, model.family.tensor_plan, mesh["tensor"])
    said = str(error.value)
    assert "layers.0.self_attn.k_proj (8 heads)" in said, "its 1024 outputs do divide"
    assert "q_proj" not in said, "of which it has 16"
    model.backbone.model.visual.blocks[0].attn.gate = nn.Linear(8, 8)
    with fake_mesh((1, 1, 2)) as mesh, pytest.raises(ValueError, match=r"says nothing of .*blocks\.0\.attn\.gate;"):
        apply_tensor_plan(model, model.family.tensor_plan, mesh["tensor"])
