"""Collectives on Python values, which also work for a process that runs alone."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist


def all_gather_objects(value: Any, group: dist.ProcessGroup | None) -> list[Any]:
    """The `value` of every rank of `group`, in rank order (collective); `[value]` where `group` is None.

    Values are pickled: for small objects, between ranks of one run.
    """
    if group is None:
        return [value]
    values: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(values, value, group=group)
    return values


def max_over_ranks(number: int, device: torch.device, group: dist.ProcessGroup | None) -> int:
    """The largest `number` of the ranks of `group` (collective), reduced on `device`; its own where `group` is None."""
    largest = torch.tensor(number, dtype=torch.int64, device=device)
    if group is not None:
        dist.all_reduce(largest, op=dist.ReduceOp.MAX, group=group)
    return int(largest)
