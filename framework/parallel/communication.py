"""What the ranks of a mesh send each other in a step: by formula, as counted, and how long it takes them."""

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

REDUCED = 4
"""Bytes of a number of a gradient on its way: float32, whatever is computed in."""


@dataclass(frozen=True, slots=True)
class Unit:
    """What FSDP gathers and reduces at once: numbers of its `weights` and of those that are `trained`, after tensor
    parallelism and rounded up to the shards. It is gathered `gathers` times a step.
    """

    weights: int
    trained: int
    gathers: int

    @classmethod
    def of(cls, parameters: Iterable[Tensor], shards: int, gathers: int) -> Unit:
        """The unit of these `parameters`, whose first sides FSDP parts among `shards` ranks."""
        weights = trained = 0
        for parameter in parameters:
            local = parameter.to_local() if isinstance(parameter, DTensor) else parameter
            numbers = -(-local.shape[0] // shards) * shards * (local.numel() // max(1, local.shape[0]))
            weights += numbers
            trained += numbers * parameter.requires_grad
        return cls(weights, trained, gathers)


def sent_in_step(
    units: Sequence[Unit], sizes: tuple[int, int, int], rounds: int, width: int, tensor: float
) -> dict[str, float]:
    """Bytes that a rank of a mesh of `sizes` sends in a step of `rounds` micro-batches, by dimension, where weights are
    gathered in numbers of `width` bytes and tensor parallelism sends `tensor` bytes a micro-batch.

    Collectives go around a ring (Patarasuk and Yuan 2009): of n bytes, gathering or scattering sends (p - 1) / p over p
    ranks, and adding up twice that. Gradients are reduced once a step, over replicas as shards.
    """
    replicate, shard, _ = sizes
    gathered = width * sum(unit.gathers * unit.weights for unit in units)
    reduced = REDUCED * sum(unit.trained for unit in units)
    return {
        "replicate": 2 * _share(replicate) * reduced / shard,
        "shard": _share(shard) * (gathered + reduced),
        "tensor": rounds * tensor,
    }


def _share(ranks: int) -> float:
    return (ranks - 1) / ranks


@dataclass(frozen=True, slots=True)
class Efficiency:
    """A step's share of time at work: `worst`, with nothing sent while something is computed; `best`, where FSDP's
    traffic hides behind the arithmetic of the other units and tensor parallelism's, which others wait for, does not.
    """

    worst: float
    best: float


def efficiency(sent: Mapping[str, float], rates: Mapping[str, float], working_s: float, units: int) -> Efficiency:
    """What becomes of a step of `working_s` seconds of arithmetic, when a rank sends `sent` bytes at `rates` bytes a
    second, by dimension of the mesh.

    Of `units` that are gathered and reduced in turn, one has nothing to hide behind: the first gathered, the last
    reduced; and no more is hidden than there is arithmetic.
    """
    seconds = {name: sent[name] / rates[name] for name in DIMENSIONS}
    alone, along = seconds["tensor"], seconds["shard"] + seconds["replicate"]
    shown = max(along / max(1, units), along - working_s)
    return Efficiency(working_s / (working_s + alone + along), working_s / (working_s + alone + shown))


class Sent(TorchDispatchMode):
    """Counts what this rank's collectives send while it is entered: `bytes` by the name of their group, as rings do
    (see `sent_in_step`).
    """

    def __init__(self) -> None:
        super().__init__()
        self.bytes: Counter[str] = Counter()

    def over(self, mesh: DeviceMesh) -> dict[str, float]:
        """Bytes by dimension of the mesh."""
        return {name: float(self.bytes[mesh.get_group(name).group_name]) for name in DIMENSIONS}

    @property
    def total(self) -> int:
        """Bytes over all groups."""
        return sum(self.bytes.values())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Do the operation, and count it if it is a collective."""
        result = func(*args, **(kwargs or {}))
        kind = _KINDS.get(func.name().split(".")[0])
        if kind is not None:
            times, whole = kind
            group = _group(args)
            size = max(tensor.nbytes for tensor in _tensors((result, args) if whole else args))
            ranks = dist.get_world_size(group)
            self.bytes[group.group_name] += round(times * _share(ranks) * size)
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
"""How many times what a collective works on goes around, and whether that is the larger of what goes in and comes
out."""


def _group(arguments: Sequence[Any]) -> dist.ProcessGroup:
    for argument in arguments:
        if isinstance(argument, str) and argument not in ("sum", "avg", "max", "min"):
            return dist.distributed_c10d._resolve_process_group(argument)  # type: ignore[arg-type]  # a name is a str
        if not isinstance(argument, (Tensor, list, str)) and hasattr(argument, "_type"):
            try:
                return dist.ProcessGroup.unbox(argument)
            except RuntimeError:  # the operation's other object: how it reduces
                continue
    raise ValueError("a collective without a group")


def _tensors(values: Any) -> list[Tensor]:
    if isinstance(values, Tensor):
        return [values]
    return [tensor for value in values for tensor in _tensors(value)] if isinstance(values, list | tuple) else []
