"""Which parameters train."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from fnmatch import fnmatchcase

from torch import nn

from framework.model.lora import adapted, adapter_parameters


def matching(model: nn.Module, pattern: str, key: str) -> list[nn.Parameter]:
    """The parameters of `model` whose names the shell pattern `pattern` matches; tied weights by any of their names.

    Raises `ValueError`, naming `key` and the nearest names, when there is none.
    """
    named = list(model.named_parameters(remove_duplicate=False))
    found = [parameter for name, parameter in named if fnmatchcase(name, pattern)]
    if not found:
        near = difflib.get_close_matches(pattern.strip("*"), [name for name, _ in named], n=3, cutoff=0.0)
        raise ValueError(f"{key}: {pattern!r} matches no parameter; the nearest are {', '.join(near)}")
    return found


def set_trainable(model: nn.Module, patterns: Iterable[str], key: str = "trainable") -> tuple[int, int]:
    """Train the parameters whose names match one of `patterns`, freeze all others; returns how many numbers train, and
    how many there are.

    Patterns apply in order; one that begins with `!` freezes again what earlier ones had chosen. Low-rank adapters are
    chosen before the first, and the layers that have them never train, whatever matches. Raises `ValueError`, naming
    the recipe's `key`, for a pattern that matches nothing and when nothing is left to train.
    """
    chosen = {id(parameter) for parameter in adapter_parameters(model).values()}
    for pattern in patterns:
        found = {id(parameter) for parameter in matching(model, pattern.removeprefix("!"), key)}
        chosen = chosen - found if pattern.startswith("!") else chosen | found
    chosen -= {id(p) for layer in adapted(model).values() for p in layer.parameters(recurse=False)}
    if not chosen:
        raise ValueError(f"{key}: no parameter is left to train")
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in chosen)
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    return sum(size for size, trains in sizes if trains), sum(size for size, _ in sizes)
