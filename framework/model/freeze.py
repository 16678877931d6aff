"""Which parameters train."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from torch import nn


def matching(names: Sequence[str], pattern: str, key: str) -> list[str]:
    """The `names` that the shell pattern `pattern` matches. Raises `ValueError`, naming `key` and the nearest names, when there is none."""
    found = [name for name in names if fnmatchcase(name, pattern)]
    if not found:
        near = difflib.get_close_matches(pattern.strip("*"), names, n=3, cutoff=0.0)
        raise ValueError(f"{key}: {pattern!r} matches no parameter; the nearest are {', '.join(near)}")
    return found


def set_trainable(model: nn.Module, patterns: Iterable[str], key: str = "trainable") -> None:
    """Train the parameters whose names match one of `patterns`, freeze all others.

    Patterns apply in order; one that begins with `!` freezes again what earlier ones had chosen.
    """
    names = [name for name, _ in model.named_parameters()]
    chosen: set[str] = set()
    for pattern in patterns:
        if pattern.startswith("!"):
            chosen -= set(matching(names, pattern[1:], key))
        else:
            chosen |= set(matching(names, pattern, key))
    if not chosen:
        raise ValueError(f"{key}: no parameter is left to train")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in chosen)
