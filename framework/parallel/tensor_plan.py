"""Tensor parallelism by a plan: which modules are cut, and how, declared as data next to the model."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Any, Literal

from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)

from framework.parallel.experts import Experts
from framework.parallel.fused_heads import FusedHeads
from framework.parallel.sequence import FirstBlock, Gathered, Injections, Positions, ScatteredRows, SpreadNorm, Whole

Cut = Literal[
    "columns", "rows", "heads", "fused heads", "head norm", "words", "replicated",
    "first block", "gathered", "scattered rows", "norm", "last norm", "injections", "whole", "experts",
]  # fmt: skip
"""`columns` and `rows` are the two halves of a pair of linear layers (Shoeybi et al. 2019, arXiv 1909.08053, section
3): the first cut by its outputs, the second by its inputs, whose sums are added up. `heads` are columns that make whole
attention heads, and `fused heads` queries, keys and values of all heads in one layer. `head norm` is a norm over each
head of such outputs `(batch, time, heads, width)`: every rank has all its weights and some of the heads. `words` cuts a
vocabulary: an embedding gives all ranks whole vectors, a head gives each rank the logits of its words, as a DTensor.
`replicated` is computed by every rank alike. `experts` are divided by their number.

From the `first block` to the `last norm` each rank has a run of the positions (see `framework.parallel.sequence`): so
has every `norm` between, and `injections` are added to it. `gathered` modules read all positions, and `scattered rows`
give each rank its run. A `whole` module reads all positions and computes them on every rank; each keeps its run.
"""


def apply_tensor_plan(model: nn.Module, plan: Mapping[str, Cut], mesh: DeviceMesh) -> None:
    """Cut the modules of `model` in place over the one-dimensional `mesh`, by the first pattern of `plan` that matches
    each one's name. Weights that several modules share stay shared.

    Attention around `heads` says in `head_dim` how wide one is; around `fused heads` it also counts them in
    `num_heads`, which becomes a rank's number. Raises `ValueError` that names every module with weights of its own that
    no pattern matches, and every one whose size does not divide.
    """
    modules = dict(_with_weights(model))
    cuts = {name: _cut(name, plan) for name in modules}
    missed = [name for name, cut in cuts.items() if cut is None]
    if missed:
        raise ValueError(f"parallel.mesh.tensor: the model's tensor plan says nothing of {', '.join(missed)}; add them")
    chosen = {name: cut for name, cut in cuts.items() if cut is not None}
    parts = {name: _parts(model, name, cut) for name, cut in chosen.items()}
    uneven = [f"{name} ({count} {what})" for name, (count, what) in parts.items() if count % mesh.size()]
    if uneven:
        raise ValueError(
            f"parallel.mesh.tensor: {mesh.size()} does not divide the sizes of {', '.join(uneven)}; choose a divisor"
        )
    shared = _shared(modules.values())
    positions = Positions(mesh)
    for name, module in model.named_modules():
        style = _style(_cut(name, plan), module, positions)
        if style is not None:
            parallelize_module(module, mesh, style)
    for (module, name), *others in shared:
        for other, key in others:
            other.register_parameter(key, getattr(module, name))
    for name, cut in chosen.items():
        if cut == "fused heads":
            attention: Any = _around(model, name)
            attention.num_heads //= mesh.size()


def _with_weights(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for name, module in model.named_modules():
        if any(True for _ in module.parameters(recurse=False)):
            yield name, module


def _shared(modules: Iterable[nn.Module]) -> list[list[tuple[nn.Module, str]]]:
    """The owners (module, name) of each weight that several modules share."""
    owners: dict[nn.Parameter, list[tuple[nn.Module, str]]] = defaultdict(list)
    for module in modules:
        for name, parameter in module.named_parameters(recurse=False):
            owners[parameter].append((module, name))
    return [each for each in owners.values() if len(each) > 1]


def _around(model: nn.Module, name: str) -> nn.Module:
    return model.get_submodule(name.rpartition(".")[0])


def _cut(name: str, plan: Mapping[str, Cut]) -> Cut | None:
    return next((cut for pattern, cut in plan.items() if fnmatchcase(name, pattern)), None)


def _parts(model: nn.Module, name: str, cut: Cut) -> tuple[int, str]:
    """Number and name of the parts that are divided over ranks; 0 where nothing is."""
    module: Any = model.get_submodule(name)
    if cut == "columns":
        return module.out_features, "outputs"
    if cut in ("rows", "scattered rows"):
        return module.in_features, "inputs"
    if cut in ("heads", "fused heads"):
        width: Any = _around(model, name).head_dim
        return module.out_features // width // (3 if cut == "fused heads" else 1), "heads"
    if cut == "experts":
        return module.num_experts, "experts"
    return (module.weight.shape[0], "words") if cut == "words" else (0, "")


def _style(cut: Cut | None, module: nn.Module, positions: Positions) -> ParallelStyle | None:
    if cut == "words":
        if isinstance(module, nn.Embedding):
            return RowwiseParallel(input_layouts=Replicate())
        return ColwiseParallel(output_layouts=Shard(-1), use_local_output=False)
    styles: dict[Cut, Callable[[], ParallelStyle]] = {
        "columns": ColwiseParallel,
        "heads": ColwiseParallel,
        "rows": RowwiseParallel,
        "fused heads": FusedHeads,
        "experts": Experts,
        "head norm": lambda: SequenceParallel(sequence_dim=2, use_local_output=True),
        "first block": lambda: FirstBlock(positions),
        "whole": lambda: Whole(positions),
        "gathered": lambda: Gathered(positions),
        "scattered rows": lambda: ScatteredRows(positions),
        "norm": lambda: SpreadNorm(positions),
        "last norm": lambda: SpreadNorm(positions, last=True),
        "injections": lambda: Injections(positions),
    }
    return styles[cut]() if cut in styles else None
