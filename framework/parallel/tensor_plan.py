"""Tensor parallelism by a plan: which modules are cut, and how, declared as data beside the model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Literal

from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)

Cut = Literal["columns", "rows", "heads", "whole"]
"""`columns` and `rows` are the two halves of a pair of linear layers (Shoeybi et al. 2019, arXiv 1909.08053, section
3): the first cut by its outputs, the second by its inputs, whose sums are added up. `heads` is a norm over each head of
such outputs `(batch, time, heads, width)`: every rank has all its weights and some of the heads. `whole` is computed by
every rank alike."""


def apply_tensor_plan(model: nn.Module, plan: Mapping[str, Cut], mesh: DeviceMesh) -> None:
    """Cut the modules of `model` in place over the one-dimensional `mesh`, by the first pattern of `plan` that matches
    each one's name.

    Raises `ValueError` that names every module with weights of its own that no pattern matches, and every one whose
    size does not divide.
    """
    chosen = {name: _cut(name, plan) for name, _ in _with_weights(model)}
    missed = [name for name, cut in chosen.items() if cut is None]
    if missed:
        raise ValueError(f"parallel.mesh.tensor: the model's tensor plan says nothing of {', '.join(missed)}; add them")
    uneven = [name for name, module in _with_weights(model) if not _divides(module, chosen[name], mesh.size())]
    if uneven:
        raise ValueError(f"parallel.mesh.tensor: {mesh.size()} does not divide the sizes of {', '.join(uneven)}")
    styles = {name: style for name, cut in chosen.items() if (style := _style(cut)) is not None}
    parallelize_module(model, mesh, styles)


def _with_weights(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for name, module in model.named_modules():
        if any(True for _ in module.parameters(recurse=False)):
            yield name, module


def _cut(name: str, plan: Mapping[str, Cut]) -> Cut | None:
    return next((cut for pattern, cut in plan.items() if fnmatchcase(name, pattern)), None)


def _divides(module: nn.Module, cut: Cut | None, parts: int) -> bool:
    if not isinstance(module, nn.Linear) or cut not in ("columns", "rows"):
        return True
    return (module.out_features if cut == "columns" else module.in_features) % parts == 0


def _style(cut: Cut | None) -> ParallelStyle | None:
    if cut == "columns":
        return ColwiseParallel()
    if cut == "rows":
        return RowwiseParallel()
    return SequenceParallel(sequence_dim=2, use_local_output=True) if cut == "heads" else None
