"""The tensor plan says something of every module that has weights, and cuts what is worth cutting."""

from __future__ import annotations

from fnmatch import fnmatchcase

import torch
from torch import nn

from framework.model.assembly import LanguageActionModel
from framework.model.tensor_plan import TENSOR_PLAN
from framework.recipe.compose import compose
from framework.recipe.instantiate import instantiate


def test_every_module_with_weights_has_its_cut_and_most_weights_are_cut() -> None:
    task = instantiate(compose(["recipe=supervised"]))
    with torch.device("meta"):
        model: LanguageActionModel = task.model(special_tokens=task.data.special_tokens)
    cut, whole = 0, 0
    for name, module in model.named_modules():
        own = sum(p.numel() for p in module.parameters(recurse=False))
        if own:
            chosen = next((how for pattern, how in TENSOR_PLAN.items() if fnmatchcase(name, pattern)), None)
            assert chosen is not None, name
            assert isinstance(module, nn.Linear) or chosen not in ("columns", "rows"), name
            cut, whole = (cut + own, whole) if chosen in ("columns", "rows") else (cut, whole + own)
    assert cut > whole
