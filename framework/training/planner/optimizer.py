"""Memory of an optimizer, measured by stepping it on small parameters: no constants per optimizer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.optim import Optimizer
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from framework.training.planner.trace import Allocations

SIDES = (192, 320, 12, 20, 28)
"""Largest sides of the small parameters. All differ, so that the sides of optimizer state can be told apart."""

Shapes = Sequence[Sequence[int]]


def optimizer_bytes(
    make: Callable[..., Optimizer],
    groups: Sequence[tuple[dict[str, Any], Shapes]],
    dtype: torch.dtype,
    foreach: bool,
    whole: Sequence[Shapes] | None = None,
    ranks: int = 1,
    device: str = "cpu",
) -> tuple[int, int]:
    """Bytes of an optimizer's state, and the most that a step needs on top of it.

    `make` builds the optimizer; `groups` are its parameter groups, each (options, shapes of this rank's parts of the
    parameters), `whole` the shapes of the parameters themselves (None: the same), which are cut over `ranks`, on a
    `device` of this type. With `foreach` an optimizer that may choose works on all parameters of a group at once, as
    torch does on GPUs for parameters that are not DTensors; else on one after another. An optimizer whose method
    `gathers` says so of a group has one parameter of it at a time whole, on every rank.
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
    transient, gathers = 0, getattr(optimizer, "gathers", lambda group: False)
    for index, (group, count) in enumerate(zip(optimizer.param_groups, counts, strict=True)):
        if gathers(group):
            options, parts = groups[index]
            pairs = set(zip(map(tuple, parts), map(tuple, (whole or [each for _, each in groups])[index]), strict=True))
            transient = max([transient, *(_gathered(make, options, *pair, ranks, dtype, device) for pair in pairs)])
            continue
        bytes_of = {shape: torch.Size(shape).numel() * dtype.itemsize for shape in count}
        at_once = sum(bytes_of[shape] * number for shape, number in count.items())
        largest = max(bytes_of.values(), default=0)
        transient = max(
            transient, round(_step_share(optimizer, group) * (at_once if group.get("foreach") else largest))
        )
    return state, transient


def _gathered(
    make: Callable[..., Optimizer],
    options: dict[str, Any],
    part: Sequence[int],
    whole: Sequence[int],
    ranks: int,
    dtype: torch.dtype,
    device: str,
) -> int:
    """Peak allocation of a second step on a parameter of shape `whole`, of which this rank, one of `ranks`, has `part`:
    what a process that has it all needs, and, where it has not, two copies of the part and what fills up the parts of
    the last ranks.
    """
    with FakeTensorMode():
        parameter = nn.Parameter(torch.empty(*whole, dtype=dtype, device=device))
        parameter.grad = torch.empty_like(parameter)
        optimizer = make([{**options, "params": [parameter]}])
        if tuple(part) == tuple(whole):
            optimizer.found_inf = torch.zeros((), device=device)  # type: ignore[attr-defined]  # as in training
        optimizer.step()
        known = [parameter, parameter.grad, *optimizer.state[parameter].values()]
        with Allocations([tensor for tensor in known if isinstance(tensor, Tensor)]) as counted:
            optimizer.step()
    if tuple(part) == tuple(whole):
        return counted.peak
    own = torch.Size(part).numel()
    return counted.peak + (2 * own + max(0, ranks * own - torch.Size(whole).numel())) * dtype.itemsize


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
