"""The device mesh: replication, sharding and tensor parallelism.

The dimensions are named and ordered `replicate`, `shard`, `tensor`. The last varies fastest over ranks, so that tensor
parallelism stays within a node, and sharding within a node or near it.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Interval
from torch import nn
from torch.distributed import ProcessGroup
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor

from framework.recipe.component import component

DIMENSIONS = ("replicate", "shard", "tensor")
Size = Annotated[int, Interval(ge=1, le=1_000_000)] | Literal["auto"]


@component
@dataclass(frozen=True)
class Mesh:
    """Sizes of the mesh, whose product is the number of ranks. The default is HSDP: sharded within a node, replicated
    over nodes.
    """

    replicate: Size = "auto"
    """Replicas of the model; `auto` is the number of ranks over `shard` x `tensor`."""
    shard: Size = "auto"
    """Ranks that parameters, gradients and optimizer state are sharded over; `auto` is the ranks of a node over
    `tensor`, or the number of ranks over `replicate` x `tensor` when `replicate` is a number."""
    tensor: Size = "auto"
    """Ranks that each layer's tensors are cut over; `auto` is 1."""

    def sizes(self, world: int, node: int) -> tuple[int, int, int]:
        """The sizes (replicate, shard, tensor) of a mesh of `world` ranks, `node` of them per node.

        Raises `ValueError` that names the key when their product is not `world`.
        """
        tensor = 1 if self.tensor == "auto" else self.tensor
        if self.shard != "auto":
            shard = self.shard
        elif self.replicate == "auto":
            shard = max(1, min(node, world) // tensor)
        else:
            shard = max(1, world // (self.replicate * tensor))
        replicate = max(1, world // (shard * tensor)) if self.replicate == "auto" else self.replicate
        sizes = (replicate, shard, tensor)
        if min(sizes) < 1 or replicate * shard * tensor != world:
            named = ", ".join(f"{name} {size}" for name, size in zip(DIMENSIONS, sizes, strict=True))
            raise ValueError(f"parallel.mesh: {named} do not make the job's {world} ranks; change one, or use auto")
        return sizes

    def build(self, device: str, world: int, node: int) -> DeviceMesh:
        """The device mesh (collective), one for the life of the process. torch.distributed must be running."""
        return _mesh(device, self.sizes(world, node))


@functools.cache
def _mesh(device: str, sizes: tuple[int, int, int]) -> DeviceMesh:
    mesh = init_device_mesh(device, sizes, mesh_dim_names=DIMENSIONS)
    mesh["replicate", "shard"]._flatten("data_parallel")
    return mesh


def tensor_group(model: nn.Module) -> ProcessGroup | None:
    """The tensor-parallel group of this rank, or None when the tensors of `model` are not cut."""
    for parameter in model.parameters():
        if isinstance(parameter, DTensor) and "tensor" in (parameter.device_mesh.mesh_dim_names or ()):
            tensor = parameter.device_mesh["tensor"]
            return tensor.get_group() if tensor.size() > 1 else None
    return None


@dataclass(frozen=True)
class DataRank:
    """A process's data-parallel rank. The ranks of one tensor-parallel group train the same samples and share it."""

    rank: int = 0
    """Index among the data-parallel ranks, over `replicate` and `shard`."""
    world: int = 1
    """Number of data-parallel ranks."""
    group: ProcessGroup | None = None
    """Process group of the ranks that train different samples; None for a process that runs alone."""
    is_writer: bool = True
    """Whether this process writes what its data-parallel rank writes once: the first of its tensor-parallel group."""

    @classmethod
    def on(cls, mesh: DeviceMesh) -> DataRank:
        """This process's data-parallel rank on `mesh`."""
        data = mesh["data_parallel"]
        is_writer = mesh["tensor"].get_local_rank() == 0
        return cls(data.get_local_rank(), data.size(), data.get_group(), is_writer)
