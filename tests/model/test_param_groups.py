from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

from framework.model.backbone import RandomBackbone
from framework.model.encoders.ego import EgoEncoder
from framework.model.freeze import set_trainable
from framework.model.language_action import LanguageActionModel
from framework.model.param_groups import parameter_groups
from tests.model.presets import preset


def names_of(of: nn.Module, parameters: list[nn.Parameter]) -> set[str]:
    named = {id(parameter): name for name, parameter in of.named_parameters()}
    return {named[id(parameter)] for parameter in parameters}


def whole(seed: int = 0) -> LanguageActionModel:
    torch.manual_seed(seed)
    return LanguageActionModel(RandomBackbone(**preset("model/backbone/tiny.yaml")), {"ego": partial(EgoEncoder)})


def tied() -> nn.ModuleDict:
    of = nn.ModuleDict(
        {
            "embed": nn.Embedding(5, 4),
            "body": nn.Linear(4, 4),
            "norm": nn.LayerNorm(4),
            "head": nn.Linear(4, 5, bias=False),
        }
    )
    of["head"].weight = of["embed"].weight
    return of


def test_vectors_and_embeddings_do_not_decay_even_when_tied() -> None:
    of = tied()
    groups = parameter_groups(of, lr=1e-3, weight_decay=0.1, lr_factors={})
    decay = {g["weight_decay"]: names_of(of, g["params"]) for g in groups}
    assert decay == {0.1: {"body.weight"}, 0.0: {"embed.weight", "body.bias", "norm.weight", "norm.bias"}}
    assert {g["lr"] for g in groups} == {1e-3}


def test_the_last_rule_that_matches_counts() -> None:
    of = tied()
    groups = parameter_groups(of, 1.0, 0.1, {"body.*": 0.5, "*.bias": 0.25, "head.*": 2.0})
    rates = {name: g["lr"] for g in groups for name in names_of(of, g["params"])}
    assert rates == {"embed.weight": 2.0, "body.weight": 0.5, "body.bias": 0.25, "norm.weight": 1.0, "norm.bias": 0.25}


@pytest.mark.parametrize("patterns", [["*"], ["encoders.*"], ["*", "!*embed*"]])
def test_every_trainable_parameter_of_the_model_is_in_exactly_one_group(patterns: list[str]) -> None:
    of = whole()
    set_trainable(of, patterns)
    groups = parameter_groups(of, 1e-4, 0.05, {"encoders.*": 10.0, "*norm*": 0.5})
    grouped = [id(parameter) for g in groups for parameter in g["params"]]
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == {id(parameter) for parameter in of.parameters() if parameter.requires_grad}
    for g in groups:
        assert g["weight_decay"] == 0 or all(parameter.ndim > 1 for parameter in g["params"])
    torch.optim.AdamW(groups)


def test_the_order_is_the_models_own() -> None:
    rules = {"encoders.*": 10.0, "*norm*": 0.5}
    first, second = (whole(seed) for seed in (0, 1))
    orders = []
    for of in (first, second):
        named = {id(parameter): name for name, parameter in of.named_parameters()}
        orders.append([[named[id(p)] for p in g["params"]] for g in parameter_groups(of, 1e-4, 0.05, rules)])
    assert orders[0] == orders[1]


def test_a_rule_that_matches_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"lr_factors: 'bodi\.\*' matches no parameter; the nearest are body"):
        parameter_groups(tied(), 1e-3, 0.1, {"bodi.*": 2.0})


def test_matrices_are_the_weights_of_hidden_linear_layers() -> None:
    of = whole()
    marked = {matrices: names_of(of, [p for g in groups for p in g["params"] if g["matrices"] is matrices])
              for groups in [parameter_groups(of, 1e-3, 0.1, {})] for matrices in (True, False)}  # fmt: skip
    assert {"encoders.ego.motion.weight", "backbone.model.visual.blocks.0.attn.qkv.weight",
            "backbone.model.language_model.layers.3.mlp.down_proj.weight"} <= marked[True]  # fmt: skip
    assert all(name.endswith(".weight") and "norm" not in name for name in marked[True])
    assert {"backbone.model.language_model.embed_tokens.weight", "encoders.ego.age.weight",
            "backbone.model.visual.patch_embed.proj.weight"} <= marked[False]  # fmt: skip


def test_a_head_of_its_own_is_no_hidden_matrix_and_stacks_of_experts_are() -> None:
    torch.manual_seed(0)
    of = LanguageActionModel(RandomBackbone(**preset("model/backbone/tiny_moe.yaml")))
    groups = parameter_groups(of, 1e-3, 0.1, {})
    marked = names_of(of, [p for g in groups for p in g["params"] if g["matrices"]])
    assert "backbone.lm_head.weight" not in marked
    assert "backbone.lm_head.weight" in {name for name, _ in of.named_parameters()}
    assert any("experts" in name and dict(of.named_parameters())[name].ndim == 3 for name in marked)
