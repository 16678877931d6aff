"""Gradient clipping for parameters on different meshes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm


def clip_gradients(parameters: Iterable[nn.Parameter], limit: float) -> Tensor:
    """Scale all gradients so that their total norm is at most `limit`; returns the norm before, equal on every rank.

    Sharded parameters with and without tensor parallelism lie on different meshes, over which torch computes no total
    norm. It is the root of the sum of the meshes' squared norms.
    """
    trained = [parameter for parameter in parameters if parameter.grad is not None]
    groups: dict[object, list[nn.Parameter]] = defaultdict(list)
    for parameter in trained:
        groups[parameter.device_mesh if isinstance(parameter, DTensor) else None].append(parameter)
    norms = [_norm(group) for group in groups.values()] or [torch.zeros(())]
    norm = norms[0] if len(norms) == 1 else torch.stack(norms).square().sum().sqrt()
    for group in groups.values():
        clip_grads_with_norm_(group, limit, norm)
    return norm


def _norm(parameters: list[nn.Parameter]) -> Tensor:
    norm = get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
    return norm.full_tensor() if isinstance(norm, DTensor) else norm
