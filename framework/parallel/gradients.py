"""Gradient clipping for parameters on different meshes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.distributed._functional_collectives import all_reduce
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate
from torch.nn.utils import get_total_norm

Cut = tuple[DeviceMesh, tuple[int, ...]]
"""A mesh, and those of its dimensions over whose ranks a gradient is cut."""
EPSILON = 1e-6
"""Added to the norm that divides, as torch does."""


@torch.no_grad()
def clip_gradients(parameters: Iterable[nn.Parameter], limit: float) -> Tensor:
    """Scale all gradients so that their total norm is at most `limit`; returns the norm before, equal on every rank.

    Each rank works on its own parts of the gradients. DTensor would plan these operations for every tensor and each of
    its possible layouts, and dispatch them again at each step. The squared norms of parts are summed over the ranks
    that hold different parts. Sharded parameters with and without tensor parallelism lie on different meshes; the total
    norm is the root of the sum of the meshes' squared norms.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if not gradients:
        return torch.zeros(())
    parts: dict[Cut | None, list[Tensor]] = defaultdict(list)
    alike: dict[torch.dtype, list[Tensor]] = defaultdict(list)
    for gradient in gradients:
        part, cut = _part(gradient)
        parts[cut].append(part)
        alike[gradient.dtype].append(_local(gradient))
    norm = _total([_norm(group, cut) for cut, group in parts.items()])
    factor = (limit / (norm + EPSILON)).clamp(max=1.0)
    for dtype, tensors in alike.items():
        torch._foreach_mul_(tensors, factor.to(dtype))
    return norm


def _local(gradient: Tensor) -> Tensor:
    return gradient.to_local() if isinstance(gradient, DTensor) else gradient


def _part(gradient: Tensor) -> tuple[Tensor, Cut | None]:
    """This rank's part of a gradient, and how it is cut; None for one that every rank holds whole."""
    if not isinstance(gradient, DTensor):
        return gradient, None
    if any(placement.is_partial() for placement in gradient.placements):  # a sum has no norm before it is summed
        summed = [Replicate() if placement.is_partial() else placement for placement in gradient.placements]
        gradient = gradient.redistribute(placements=summed)
    cut = tuple(dim for dim, placement in enumerate(gradient.placements) if not placement.is_replicate())
    return gradient.to_local(), (gradient.device_mesh, cut) if cut else None


def _norm(parts: list[Tensor], cut: Cut | None) -> Tensor:
    norm = get_total_norm(parts)
    if cut is None:
        return norm
    mesh, dims = cut
    square = norm.float().square()
    for dim in dims:
        square = all_reduce(square, "sum", mesh.get_group(dim))
    return square.sqrt()


def _total(norms: list[Tensor]) -> Tensor:
    return norms[0] if len(norms) == 1 else torch.stack([norm.float() for norm in norms]).square().sum().sqrt()
