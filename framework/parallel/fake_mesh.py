"""A fake mesh: a model can be cut for any mesh and measured on one machine, without the other ranks."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from framework.parallel.mesh import DIMENSIONS


@contextmanager
def fake_mesh(sizes: tuple[int, int, int]) -> Iterator[DeviceMesh]:
    """The first rank's view of a mesh of `sizes`; its collectives return the right shapes and move nothing.

    Raises `RuntimeError` when torch.distributed is already running: a process has one world.
    """
    if dist.is_initialized():
        raise RuntimeError("torch.distributed runs in this process: a fake mesh needs a process without it")
    # torch has no public name for the fake backend, which its own tests and planners use.
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", rank=0, world_size=math.prod(sizes), store=FakeStore())
    try:
        yield init_device_mesh("cpu", sizes, mesh_dim_names=DIMENSIONS)
    finally:
        dist.destroy_process_group()
