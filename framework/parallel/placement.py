"""Where a model runs, in which precision, and what is traded for memory and speed."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule
from torch.utils.checkpoint import checkpoint

from framework.parallel.mesh import DataRank, Mesh
from framework.parallel.sharding import shard
from framework.parallel.strategy import MeshStrategy
from framework.parallel.tensor_plan import Cut, apply_tensor_plan


class Placement:
    """Devices, mesh, precision, activation checkpointing and compilation of a run.

    `accelerator` and `devices` are Lightning's; more than one process is launched by torchrun or srun, never by
    Lightning itself, and lies on `mesh`. `precision` is Lightning's name ("32-true", "bf16-mixed"); on a
    mesh "bf16-mixed" means float32 weights, computed with in bfloat16, whose gradients are reduced in float32.
    `activation_checkpointing` recomputes every block in the backward pass; `compile_blocks` compiles each in place.
    `deterministic` asks torch for bitwise-equal reruns. `threads` is the process's number of CPU threads, set at once
    (None: torch's own choice, which depends on the machine).
    """

    def __init__(
        self,
        accelerator: str = "auto",
        devices: int | Literal["auto"] = "auto",
        mesh: Mesh | None = None,
        precision: Literal["32-true", "bf16-mixed"] = "bf16-mixed",
        activation_checkpointing: bool = False,
        compile_blocks: bool = False,
        deterministic: bool = False,
        threads: int | None = None,
    ) -> None:
        self.accelerator = accelerator
        self.devices = devices
        self.mesh = mesh or Mesh()
        self.precision = precision
        self.activation_checkpointing = activation_checkpointing
        self.compile_blocks = compile_blocks
        self.deterministic = deterministic
        if threads is not None:
            torch.set_num_threads(threads)

    def trainer_arguments(self) -> dict[str, Any]:
        """Arguments for Lightning's Trainer."""
        arguments: dict[str, Any] = {
            "accelerator": self.accelerator,
            "devices": self.devices,
            "precision": self.precision,
            "deterministic": self.deterministic,
        }
        if world_size() > 1:
            on_mesh = {"bf16-mixed": "32-true"}.get(self.precision, self.precision)
            arguments |= {"strategy": MeshStrategy(self.mesh), "num_nodes": nodes(), "precision": on_mesh}
        return arguments

    @property
    def device(self) -> torch.device:
        """Where this process examines a model outside of Lightning."""
        if self.accelerator == "cpu" or not torch.cuda.is_available():
            return torch.device("cpu")
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))

    def data_rank(self) -> DataRank:
        """This process's share of the data; alone as long as torch.distributed does not run."""
        if not (dist.is_available() and dist.is_initialized()) or world_size() == 1:
            return DataRank()
        return DataRank.on(self._mesh())

    def distribute(
        self, model: nn.Module, units: Sequence[nn.Module], entries: Sequence[str], plan: Mapping[str, Cut]
    ) -> None:
        """Cut `model` over the mesh in place, once: tensors by `plan`, then `units` sharded (see `shard`)."""
        if isinstance(model, FSDPModule) or world_size() == 1:
            return
        mesh = self._mesh()
        if mesh["tensor"].size() > 1:
            apply_tensor_plan(model, plan, mesh["tensor"])
        shard(model, units, entries, mesh["replicate", "shard"], bf16=self.precision == "bf16-mixed")

    def _mesh(self) -> DeviceMesh:
        return self.mesh.build(self.device.type, world_size(), world_size() // nodes())

    def prepare(self, blocks: Iterable[nn.Module]) -> None:
        """Checkpoint, then compile, each of `blocks` in place: parameter names stay what they were."""
        for block in blocks:
            if self.activation_checkpointing:
                block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)
            if self.compile_blocks:
                block.compile()


def world_size() -> int:
    """Processes of the job, as torchrun or Slurm say; 1 without either."""
    return int(os.environ.get("WORLD_SIZE") or os.environ.get("SLURM_NTASKS") or 1)


def nodes() -> int:
    """Nodes of the job."""
    per_node = int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("SLURM_NTASKS_PER_NODE") or world_size())
    return max(1, world_size() // per_node)
