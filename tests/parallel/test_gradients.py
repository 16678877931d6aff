"""Gradients that are cut over ranks are clipped as torch clips them whole."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard, distribute_tensor
from torch.nn.utils import clip_grad_norm_

from framework.parallel.gradients import clip_gradients
from tests.processes import run_ranks

CUTS: list[tuple[Placement, ...]] = [
    (Shard(0), Replicate()),
    (Shard(0), Shard(1)),
    (Replicate(), Shard(0)),
    (Replicate(), Replicate()),
    (Shard(1), Partial()),
]
LIMITS = (0.5, 1e6)


def _cut(whole: Tensor, mesh: DeviceMesh, placements: tuple[Placement, ...]) -> Tensor:
    """`whole` cut so; of a sum each rank has a share."""
    kept = [Replicate() if placement.is_partial() else placement for placement in placements]
    local = distribute_tensor(whole, mesh, kept).to_local()
    shares = [mesh.size(dim) for dim, placement in enumerate(placements) if placement.is_partial()]
    return DTensor.from_local(
        local / (shares or [1])[0], mesh, placements, run_check=False, shape=whole.shape, stride=whole.stride()
    )


def _clip_as_torch() -> None:
    """Gradients of sizes that do not divide, on meshes of one and two dimensions, and one that is not cut."""
    dist.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (2, 1), mesh_dim_names=("shard", "tensor"))
    other = init_device_mesh("cpu", (1, 2), mesh_dim_names=("shard", "tensor"))
    for limit in LIMITS:
        torch.manual_seed(0)
        whole, ours = [nn.Parameter(torch.zeros(5, 3)) for _ in range(2 * len(CUTS) + 2)], []
        for parameter in whole:
            parameter.grad = torch.randn(5, 3)
        places = [(each, cut) for each in (mesh, other) for cut in CUTS] + [(mesh["shard"], (Shard(0),))]
        for parameter, (each, cut) in zip(whole, places, strict=False):
            assert parameter.grad is not None
            mine = nn.Parameter(_cut(torch.zeros(5, 3), each, cut))
            mine.grad = _cut(parameter.grad, each, cut)
            ours.append(mine)
        last = nn.Parameter(torch.zeros(5, 3))
        last.grad = whole[-1].grad.clone()  # type: ignore[union-attr]
        ours.append(last)
        norm, expected = clip_gradients(ours, limit), clip_grad_norm_(whole, limit)
        torch.testing.assert_close(norm, expected)
        for mine, parameter in zip(ours, whole, strict=True):
            found = mine.grad.full_tensor() if isinstance(mine.grad, DTensor) else mine.grad
            torch.testing.assert_close(found, parameter.grad)
        told = [torch.zeros(()) for _ in range(2)]
        dist.all_gather(told, norm)
        assert torch.equal(*told), "ranks that disagree would drift apart"
    dist.destroy_process_group()


@pytest.mark.slow
def test_gradients_that_are_cut_are_clipped_as_whole_ones() -> None:
    run_ranks(2, _clip_as_torch, timeout=200)
