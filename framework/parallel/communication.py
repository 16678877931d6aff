"""Bytes that the ranks of a mesh send each other in a step: by formula, as counted, and the time they take."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode

from framework.parallel.mesh import DIMENSIONS

REDUCED_WIDTH = 4
"""Bytes per element of a gradient that is being reduced: float32, whatever the model computes in."""


@dataclass(frozen=True, slots=True)
class FSDPUnit:
    """Parameters that FSDP gathers and reduces together. Sizes are those after tensor parallelism, padded to the
    shards.
    """

    weights: int
    """Elements of its parameters."""
    trained: int
    """Elements of those that train."""
    gathers: int
    """Times that it is gathered in a step."""

    @classmethod
    def of(cls, parameters: Iterable[Tensor], shards: int, gathers: int) -> FSDPUnit:
        """The unit of `parameters`, whose first sides FSDP cuts over `shards` ranks."""
        weights = trained = 0
        for parameter in parameters:
            local = parameter.to_local() if isinstance(parameter, DTensor) else parameter
            elements = -(-local.shape[0] // shards) * shards * (local.numel() // max(1, local.shape[0]))
            weights += elements
            trained += elements * parameter.requires_grad
        return cls(weights, trained, gathers)


def bytes_sent(
    units: Sequence[FSDPUnit], sizes: tuple[int, int, int], micro_batches: int, width: int, tensor: float
) -> dict[str, float]:
    """Bytes that a rank of a mesh of `sizes` sends in a step, by dimension of the mesh.

    Weights are gathered with `width` bytes per element, and tensor parallelism sends `tensor` bytes per micro-batch.
    Collectives go around a ring (Patarasuk and Yuan 2009): over p ranks, an all-gather or reduce-scatter of n bytes
    sends n (p - 1) / p, and an all-reduce twice that. Gradients are reduced once a step; replicas reduce shards.
    """
    replicate, shard, _ = sizes
    gathered = width * sum(unit.gathers * unit.weights for unit in units)
    reduced = REDUCED_WIDTH * sum(unit.trained for unit in units)
    return {
        "replicate": 2 * _ring_share(replicate) * reduced / shard,
        "shard": _ring_share(shard) * (gathered + reduced),
        "tensor": micro_batches * tensor,
    }


def _ring_share(ranks: int) -> float:
    return (ranks - 1) / ranks


@dataclass(frozen=True, slots=True)
class Efficiency:
    """Share of a step's time spent computing."""

    worst: float
    """When no communication overlaps with computing."""
    best: float
    """When FSDP's traffic overlaps with the computing of other units. Tensor parallelism's never does."""


def efficiency(sent: Mapping[str, float], rates: Mapping[str, float], computing_s: float, units: int) -> Efficiency:
    """The efficiency of a step that computes for `computing_s` seconds while a rank sends `sent` bytes at `rates` bytes
    per second, both by dimension of the mesh.

    Of `units` that are gathered and reduced in turn, one cannot overlap: the first gathered, the last reduced. And no
    more time overlaps than is spent computing.
    """
    seconds = {name: sent[name] / rates[name] for name in DIMENSIONS}
    tensor_s, fsdp_s = seconds["tensor"], seconds["shard"] + seconds["replicate"]
    exposed_s = max(fsdp_s / max(1, units), fsdp_s - computing_s)
    return Efficiency(
        computing_s / (computing_s + tensor_s + fsdp_s), computing_s / (computing_s + tensor_s + exposed_s)
    )


class CollectiveCounter(TorchDispatchMode):
    """Counts the bytes that this rank's collectives send while the mode is active, as rings send them.

    `bytes` holds them by the name of the process group (see `bytes_sent`).
    """

    def __init__(self) -> None:
        super().__init__()
        self.bytes: Counter[str] = Counter()

    def over(self, mesh: DeviceMesh) -> dict[str, float]:
        """Bytes sent, by dimension of `mesh`."""
        return {name: float(self.bytes[mesh.get_group(name).group_name]) for name in DIMENSIONS}

    @property
    def total(self) -> int:
        """Bytes sent over all groups."""
        return sum(self.bytes.values())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation, and count it if it is a collective."""
        result = func(*args, **(kwargs or {}))
        kind = _KINDS.get(func.name().split(".")[0])
        if kind is not None:
            times, larger = kind
            group = _group(args)
            size = max(tensor.nbytes for tensor in _tensors((result, args) if larger else args))
            ranks = dist.get_world_size(group)
            self.bytes[group.group_name] += round(times * _ring_share(ranks) * size)
        return result


_KINDS = {
    "c10d::_allgather_base_": (1, True),
    "c10d::_reduce_scatter_base_": (1, True),
    "c10d::allreduce_": (2, False),
    "_c10d_functional::all_gather_into_tensor": (1, True),
    "_c10d_functional::all_gather_into_tensor_out": (1, True),
    "_c10d_functional::reduce_scatter_tensor": (1, True),
    "_c10d_functional::all_reduce": (2, False),
    "_c10d_functional::all_reduce_": (2, False),
    "_c10d_functional::all_to_all_single": (1, False),
}
"""By collective: how many times its tensor goes around the ring, and whether that is the larger of input and output."""


def _group(arguments: Sequence[Any]) -> dist.ProcessGroup:
    for argument in arguments:
        if isinstance(argument, str) and argument not in ("sum", "avg", "max", "min"):
            return dist.distributed_c10d._resolve_process_group(argument)  # type: ignore[arg-type]  # a name is a str
        if not isinstance(argument, (Tensor, list, str)) and hasattr(argument, "_type"):
            try:
                return dist.ProcessGroup.unbox(argument)
            except RuntimeError:  # the other object argument: the reduction
                continue
    raise ValueError("a collective without a group")


def _tensors(values: Any) -> list[Tensor]:
    if isinstance(values, Tensor):
        return [values]
    return [tensor for value in values for tensor in _tensors(value)] if isinstance(values, list | tuple) else []
