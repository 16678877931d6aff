"""The device mesh: how often a model is replicated, over how many ranks it is sharded, into how many its tensors are
cut.

The dimensions are named and ordered `replicate`, `shard`, `tensor`. The innermost varies fastest over ranks, so that
tensor parallelism stays inside a node, and sharding inside it or near.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Literal

from torch import nn
from torch.distributed import ProcessGroup
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor

DIMENSIONS = ("replicate", "shard", "tensor")
Size = int | Literal["auto"]


@dataclass(frozen=True)
class Mesh:
    """Sizes of the mesh, each a number or `auto`.

    An automatic `shard` is what a node has left beside `tensor`; an automatic `replicate` is what the world has left
    beside both; `tensor` is never more than 1 by itself. So the default is HSDP: sharded in a node, replicated over
    nodes.
    """

    replicate: Size = "auto"
    shard: Size = "auto"
    tensor: Size = "auto"

    def sizes(self, world: int, node: int) -> tuple[int, int, int]:
        """The sizes of a mesh of `world` ranks, `node` of them on each node.

        Raises `ValueError` that names the key when they do not multiply to the world.
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
        """The mesh itself (collective), torch.distributed running: one for the life of the process."""
        return _mesh(device, self.sizes(world, node))


@functools.cache
def _mesh(device: str, sizes: tuple[int, int, int]) -> DeviceMesh:
    mesh = init_device_mesh(device, sizes, mesh_dim_names=DIMENSIONS)
    mesh["replicate", "shard"]._flatten("data_parallel")
    return mesh


def tensor_group(model: nn.Module) -> ProcessGroup | None:
    """The ranks that this one's tensors of `model` are cut over; None where they are not."""
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
