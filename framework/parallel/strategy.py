"""Lightning's strategy on a named device mesh: any product of replication, sharding and tensor parallelism."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch.strategies import ModelParallelStrategy

from framework.parallel.mesh import DataRank, Mesh


class MeshStrategy(ModelParallelStrategy):
    """Builds the mesh; the module's `configure_model` distributes the model over it. NCCL on GPUs, gloo on CPUs.

    Lightning's own strategy knows two dimensions, of which it looks up `data_parallel` by name: here that is
    `replicate` and `shard` flattened.

    Args:
        mesh: Sizes of the mesh.
    """

    def __init__(self, mesh: Mesh) -> None:
        super().__init__()
        self.sizes = mesh

    def setup_environment(self) -> None:
        """Start torch.distributed and build the mesh."""
        assert self.accelerator is not None
        self.accelerator.setup_device(self.root_device)
        self._setup_distributed()
        self._device_mesh = self.sizes.build(self.root_device.type, self.world_size, self.num_processes)

    @property
    def distributed_sampler_kwargs(self) -> dict[str, Any]:
        """The share of the data that this rank trains: its data-parallel rank, over replicas and shards."""
        dp_rank = DataRank.on(self.device_mesh)
        return {"num_replicas": dp_rank.world, "rank": dp_rank.rank}

    def _determine_device_ids(self) -> list[int] | None:  # type: ignore[override]
        return None if self.root_device.type == "cpu" else [torch.cuda.current_device()]
