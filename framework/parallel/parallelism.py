"""Devices, mesh, precision and memory options of a run."""

from __future__ import annotations

import atexit
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule

from framework.parallel.compilation import Compilation
from framework.parallel.links import LinkCheck
from framework.parallel.mesh import DataRank, Mesh
from framework.parallel.precision import Precision
from framework.parallel.recompute import Recompute
from framework.parallel.sharding import shard
from framework.parallel.tensor_plan import Cut, apply_tensor_plan
from framework.recipe.component import component
from framework.recipe.ranges import PerNode

WAIT = timedelta(minutes=30)
"""Timeout of collectives: some ranks take much longer in an evaluation than others."""


@component
class Parallelism:
    """Distributes a model over devices, and sets its precision, recomputation and compilation.

    The command itself, torchrun or srun launches the ranks, never Lightning. `deterministic` and `threads` take effect
    for the whole process when the object is built.

    Args:
        accelerator: Lightning's: `auto`, `gpu` or `cpu`.
        devices: Devices of this machine, each with a rank of its own, or `auto` for all. Where torchrun, srun or a job
            starts the ranks, it decides.
        mesh: Sizes of the device mesh (default: HSDP).
        precision: Number formats of weights and arithmetic (default: float32).
        recompute: Activation checkpointing (default: none).
        compilation: What torch.compile compiles (default: nothing).
        deterministic: Whether reruns on the same machine and mesh are bitwise equal, at some loss of speed.
        threads: CPU threads of the process; None leaves torch's choice, which depends on the machine.
        links: Check of the links between nodes, made before anything else; None makes none.
    """

    def __init__(
        self,
        accelerator: str = "auto",
        devices: PerNode | Literal["auto"] = "auto",
        mesh: Mesh | None = None,
        precision: Precision | None = None,
        recompute: Recompute | None = None,
        compilation: Compilation | None = None,
        deterministic: bool = False,
        threads: PerNode | None = None,
        links: LinkCheck | None = None,
    ) -> None:
        self.accelerator = accelerator
        self.devices = devices
        self.mesh = mesh or Mesh()
        self.precision = precision or Precision()
        self.recompute = recompute or Recompute(every=None)
        self.compilation = compilation or Compilation()
        self.deterministic = deterministic
        self.links = links
        float8 = self.precision.float8
        if float8 is not None and accelerator == "cpu" and not float8.emulate:
            raise ValueError(
                "parallel.precision: a CPU has no products of float8; choose parallel/precision=bf16_mixed, or for a "
                "test parallel.precision.float8.emulate=true"
            )
        if float8 is not None and self.mesh.tensor not in ("auto", 1):
            raise ValueError(
                "parallel.mesh.tensor: layers in float8 are not cut; set it to 1, or choose "
                "parallel/precision=bf16_mixed"
            )
        if deterministic:
            os.environ["FLASH_ATTENTION_DETERMINISTIC"] = "1"  # how transformers asks the flash kernels
        if threads is not None:
            torch.set_num_threads(threads)

    def trainer_arguments(self) -> dict[str, Any]:
        """Keyword arguments for Lightning's Trainer."""
        arguments: dict[str, Any] = {
            "accelerator": self.accelerator,
            "devices": world_size() // nodes(),  # as many as were started, whatever the recipe says
            # For weights kept in bfloat16 Lightning has nothing to do: it would cast the inputs, too.
            "precision": "bf16-mixed" if self.precision.mixed and world_size() == 1 else "32-true",
            "deterministic": self.deterministic,
        }
        if world_size() > 1:
            from framework.parallel.strategy import MeshStrategy  # imports Lightning, which takes seconds

            arguments |= {"strategy": MeshStrategy(self.mesh), "num_nodes": nodes()}
        return arguments

    @property
    def device(self) -> torch.device:
        """The device on which this process runs a model outside of Lightning."""
        if self.accelerator == "cpu" or not torch.cuda.is_available():
            return torch.device("cpu")
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))

    def data_rank(self) -> DataRank:
        """This process's data-parallel rank; rank 0 of 1 while torch.distributed is not running."""
        if not (dist.is_available() and dist.is_initialized()) or world_size() == 1:
            return DataRank()
        return DataRank.on(self._mesh())

    @property
    def tensor_ranks(self) -> int:
        """Ranks that share each layer's tensors; 1 while torch.distributed is not running."""
        return 1 if world_size() == 1 else int(self._mesh()["tensor"].size())

    def start(self) -> None:
        """Start torch.distributed when there are several ranks: NCCL between GPUs, gloo between CPUs.

        Lightning then uses it. Under srun the ranks meet at the first node, at a port derived from the job's number.
        """
        if world_size() == 1 or dist.is_initialized():
            return
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        rendezvous: dict[str, Any] = {}
        if "MASTER_ADDR" not in os.environ:
            from lightning.fabric.plugins.environments import SLURMEnvironment  # takes seconds

            slurm = SLURMEnvironment()
            rendezvous = {"init_method": f"tcp://{slurm.main_address}:{slurm.main_port}", "rank": slurm.global_rank(),
                       "world_size": slurm.world_size()}  # fmt: skip
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if self.device.type == "cuda" else "gloo", timeout=WAIT, **rendezvous
        )
        atexit.register(_leave)
        if self.links is not None and nodes() > 1:
            self.links.check(self.device, nodes())

    def distribute(self, model: nn.Module, units: Sequence[nn.Module], plan: Mapping[str, Cut]) -> None:
        """Distribute `model` over the mesh, in place and once: cut tensors by `plan`, then shard `units` (see `shard`).

        Its parameters need no data yet.
        """
        if isinstance(model, FSDPModule) or world_size() == 1:
            return
        mesh = self._mesh()
        if mesh["tensor"].size() > 1:
            apply_tensor_plan(model, plan, mesh["tensor"])
        # DTensor tries every placement on each dimension of a parameter's mesh: none is there for nothing.
        data = mesh["replicate", "shard"] if mesh["replicate"].size() > 1 else mesh["shard"]
        shard(model, units, data, self.precision.on_mesh())

    def _mesh(self) -> DeviceMesh:
        return self.mesh.build(self.device.type, world_size(), world_size() // nodes())

    def prepare(self, model: nn.Module, blocks: Sequence[nn.Module]) -> None:
        """Cast `model`, then set up float8 layers, recomputation and compilation of its `blocks`, in place. Parameter
        names stay.
        """
        self.precision.cast(model)
        self.precision.convert(model)
        self.recompute.apply(blocks)
        self.compilation.apply(model, blocks)

    @contextmanager
    def as_trained(self) -> Iterator[None]:
        """Compute in training's precision outside of Lightning. On a mesh FSDP casts the weights as it gathers them."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision.mixed and world_size() == 1):
            yield


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def world_size() -> int:
    """Number of processes of the job, from torchrun's or Slurm's variables; 1 without either."""
    return int(os.environ.get("WORLD_SIZE") or os.environ.get("SLURM_NTASKS") or 1)


def nodes() -> int:
    """Number of nodes of the job."""
    per_node = int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("SLURM_NTASKS_PER_NODE") or world_size())
    return max(1, world_size() // per_node)
