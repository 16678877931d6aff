"""Parameters in groups, each with its own learning rate and weight decay."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from framework.model.freeze import matching


def parameter_groups(
    model: nn.Module, lr: float, weight_decay: float, lr_factors: Mapping[str, float], key: str = "lr_factors"
) -> list[dict[str, Any]]:
    """Groups for a torch optimizer; every trainable parameter is in exactly one.

    `lr_factors` maps name patterns to factors of `lr`; of several that match, the last counts. Vectors (norms, biases) and embeddings do not
    decay. Raises `ValueError` for a pattern that matches nothing. Tied weights appear once, under their first name.
    """
    names = [name for name, _ in model.named_parameters()]
    factors = {name: factor for pattern, factor in lr_factors.items() for name in matching(names, pattern, key)}
    embeddings = {
        id(p) for module in model.modules() if isinstance(module, nn.Embedding) for p in module.parameters(recurse=False)
    }
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decays = parameter.ndim > 1 and id(parameter) not in embeddings
            groups.setdefault((factors.get(name, 1.0), decays), []).append(parameter)
    return [
        {"params": parameters, "lr": lr * factor, "weight_decay": weight_decay if decays else 0.0}
        for (factor, decays), parameters in groups.items()
    ]
