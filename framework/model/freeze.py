"""Selection of the parameters that train."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from fnmatch import fnmatchcase

from torch import nn

from framework.model.lora import adapted_layers
from framework.model.quantized_base import count_weights
from framework.model.weights import added_parameters


def matching(model: nn.Module, pattern: str, key: str) -> list[nn.Parameter]:
    """The parameters of `model` whose names match the shell pattern `pattern`.

    Tied weights match by any of their names. Raises `ValueError` with `key` and the nearest names when there is none.
    """
    named = list(model.named_parameters(remove_duplicate=False))
    parameters = [parameter for name, parameter in named if fnmatchcase(name, pattern)]
    if not parameters:
        near = difflib.get_close_matches(pattern.strip("*"), [name for name, _ in named], n=3, cutoff=0.0)
        raise ValueError(f"{key}: {pattern!r} matches no parameter; the nearest are {', '.join(near)}")
    return parameters


def set_trainable(model: nn.Module, patterns: Iterable[str], key: str = "trainable") -> tuple[int, int]:
    """Train the parameters whose names match one of `patterns`, and freeze all others.

    Patterns apply in order; one that starts with `!` freezes what earlier ones selected. Low-rank adapters and an
    action head are selected before the first pattern, and adapted layers never train, whatever matches. Returns the
    number of trainable elements and that of all elements. Raises `ValueError` with the recipe's `key` for a pattern
    that matches nothing and when nothing is left to train.
    """
    added = added_parameters(model)
    selected = {id(parameter) for name, parameter in model.named_parameters() if name in added}
    for pattern in patterns:
        matches = {id(parameter) for parameter in matching(model, pattern.removeprefix("!"), key)}
        selected = selected - matches if pattern.startswith("!") else selected | matches
    selected -= {id(p) for layer in adapted_layers(model).values() for p in layer.parameters(recurse=False)}
    if not selected:
        raise ValueError(f"{key}: no parameter is left to train")
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in selected)
    return count_weights(model, trainable_only=True), count_weights(model)
