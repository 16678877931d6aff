"""Moves micro-batches to a device."""

from __future__ import annotations

import functools
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

Value = TypeVar("Value")


def to_device(value: Value, device: torch.device) -> Value:
    """A copy of a micro-batch, or another tree of dictionaries and tensors, with all tensors on `device`; scenes,
    tasks and ids are shared with it.

    To a GPU, tensors are copied from pinned memory on a stream of their own while the device computes; only what
    is computed after this call waits for them.
    """
    moved: Value
    if device.type != "cuda":
        moved = _moved(value, device)
        return moved
    copies, computing = _copy_stream(device), torch.cuda.current_stream(device)
    with torch.cuda.stream(copies):
        moved = _moved(value, device)
    computing.wait_stream(copies)
    for tensor in tree_leaves(moved):
        if isinstance(tensor, Tensor) and tensor.is_cuda:
            tensor.record_stream(computing)
    return moved


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        pinned = device.type == "cuda" and value.device.type == "cpu" and value.numel() > 0
        return (value.pin_memory() if pinned else value).to(device, non_blocking=True)
    if isinstance(value, dict):
        return {name: _moved(inner, device) for name, inner in value.items()}
    return value


@functools.cache
def _copy_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)
