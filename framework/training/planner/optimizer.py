"""Memory of an optimizer, measured by stepping it on small parameters: no constants per optimizer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from framework.training.planner.trace import Allocations

SIDES = (192, 320, 12, 20, 28)
"""Largest sides of the small parameters. All differ, so that the sides of optimizer state can be told apart."""

Shapes = Sequence[Sequence[int]]


def optimizer_bytes(
    make: Callable[..., Optimizer], groups: Sequence[tuple[dict[str, Any], Shapes]], dtype: torch.dtype, foreach: bool
) -> tuple[int, int]:
    """Bytes of an optimizer's state, and the most that a step needs on top of it.

    `make` builds the optimizer; `groups` are its parameter groups, each (options, shapes of parameters). With `foreach`
    an optimizer that may choose works on all parameters of a group at once, as torch does on GPUs for parameters that
    are not DTensors; else on one after another.
    """
    counts = [Counter(tuple(shape) for shape in shapes) for _, shapes in groups]
    small = [[_small(shape, dtype) for shape in count] for count in counts]
    param_groups = [{**options, "params": mine} for (options, _), mine in zip(groups, small, strict=True)]
    optimizer = make(param_groups)
    for group in optimizer.param_groups:
        if group.get("foreach", False) is None and not group.get("fused"):
            group["foreach"] = foreach
    optimizer.step()  # creates the state; torch's own optimizers need no data for that
    state = sum(
        number * _state_bytes(optimizer.state[parameter], parameter, shape)
        for count, mine in zip(counts, small, strict=True)
        for (shape, number), parameter in zip(count.items(), mine, strict=True)
    )
    transient = 0
    for group, count in zip(optimizer.param_groups, counts, strict=True):
        bytes_of = {shape: torch.Size(shape).numel() * dtype.itemsize for shape in count}
        at_once = sum(bytes_of[shape] * number for shape, number in count.items())
        largest = max(bytes_of.values(), default=0)
        transient = max(
            transient, round(_step_share(optimizer, group) * (at_once if group.get("foreach") else largest))
        )
    return state, transient


def _small(shape: Sequence[int], dtype: torch.dtype) -> nn.Parameter:
    sides = [min(side, most) for side, most in zip(shape, SIDES, strict=False)]
    parameter = nn.Parameter(torch.zeros(*sides, dtype=dtype))
    parameter.grad = torch.zeros_like(parameter)
    return parameter


def _state_bytes(state: dict[str, Any], parameter: Tensor, shape: Sequence[int]) -> int:
    """Bytes of the state of a parameter of `shape`, derived from that of a small one."""
    real = dict(zip(parameter.shape, shape, strict=True))
    total = 0
    for tensor in (part for value in state.values() if isinstance(value, Tensor) for part in _parts(value)):
        if tensor.numel() == parameter.numel():
            total += tensor.element_size() * torch.Size(shape).numel()
        else:
            total += tensor.element_size() * torch.Size(real.get(side, side) for side in tensor.shape).numel()
    return total


def _parts(tensor: Tensor) -> list[Tensor]:
    """The tensors that a quantised tensor consists of."""
    wrapper: Any = tensor
    if not is_traceable_wrapper_subclass(wrapper):
        return [tensor]
    return [part for name in wrapper.__tensor_flatten__()[0] for part in _parts(getattr(wrapper, name))]


def _step_share(optimizer: Optimizer, group: dict[str, Any]) -> float:
    """Peak allocation of a second step on a group's largest parameter, as a share of that parameter."""
    largest = max(group["params"], key=torch.Tensor.numel)
    groups, optimizer.param_groups = optimizer.param_groups, [{**group, "params": [largest]}]
    known = [t for t in (largest, largest.grad, *optimizer.state[largest].values()) if isinstance(t, Tensor)]
    with Allocations(known) as counted:
        optimizer.step()
    optimizer.param_groups = groups
    return counted.peak / largest.nbytes
