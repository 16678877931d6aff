"""Sizes of the mesh: what is automatic, what is refused, and who trains which samples."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils import clip_grad_norm_

from framework.parallel.gradients import clip_gradients
from framework.parallel.mesh import DataRank, Mesh
from framework.parallel.tensor_plan import apply_tensor_plan


@pytest.mark.parametrize(
    ("mesh", "world", "node", "sizes"),
    [
        (Mesh(), 1, 1, (1, 1, 1)),
        (Mesh(), 8, 8, (1, 8, 1)),
        (Mesh(), 32, 8, (4, 8, 1)),
        (Mesh(tensor=2), 32, 8, (4, 4, 2)),
        (Mesh(replicate=8), 8, 8, (8, 1, 1)),
        (Mesh(replicate=2, tensor=2), 8, 8, (2, 2, 2)),
        (Mesh(shard=32), 32, 8, (1, 32, 1)),
        (Mesh(replicate=2, shard=2, tensor=2), 8, 4, (2, 2, 2)),
    ],
)
def test_what_is_automatic_shards_in_a_node_and_replicates_over_nodes(
    mesh: Mesh, world: int, node: int, sizes: tuple[int, int, int]
) -> None:
    assert mesh.sizes(world, node) == sizes


@pytest.mark.parametrize(
    ("mesh", "said"),
    [
        (Mesh(shard=3), "replicate 2, shard 3, tensor 1 do not make the job's 8 ranks"),
        (Mesh(2, 2, 1), "replicate 2, shard 2, tensor 1 do not make"),
        (Mesh(tensor=16), "tensor 16 do not make"),
        (Mesh(shard=0, replicate=8), "shard 0, tensor 1 do not make"),
    ],
)
def test_sizes_that_do_not_make_the_world_are_refused_by_name(mesh: Mesh, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        mesh.sizes(8, 8)


def test_a_process_by_itself_trains_everything() -> None:
    assert DataRank() == DataRank(rank=0, world=1, group=None, is_writer=True)


class _Sized:
    """As much of a mesh as a plan is checked against."""

    def __init__(self, ranks: int) -> None:
        self.ranks = ranks

    def size(self) -> int:
        return self.ranks


def test_a_plan_that_forgets_a_module_or_does_not_divide_it_names_it() -> None:
    model = nn.ModuleDict({"up": nn.Linear(4, 6), "down": nn.Linear(6, 4), "norm": nn.LayerNorm(4)})
    with pytest.raises(ValueError, match="says nothing of down, norm"):
        apply_tensor_plan(model, {"up": "columns"}, _Sized(2))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"4 does not divide the sizes of up \(6 outputs\), down \(6 inputs\)"):
        apply_tensor_plan(model, {"up": "columns", "down": "rows", "*": "replicated"}, _Sized(4))  # type: ignore[arg-type]


@pytest.mark.parametrize("limit", [0.1, 1e6])
def test_on_one_device_gradients_are_clipped_as_torch_clips_them(limit: float) -> None:
    torch.manual_seed(0)
    ours, theirs = ([nn.Parameter(torch.zeros(5, 3)), nn.Parameter(torch.zeros(7))] for _ in range(2))
    for one, other in zip(ours, theirs, strict=True):
        one.grad = torch.randn_like(one)
        other.grad = one.grad.clone()
    assert torch.equal(clip_gradients(ours, limit), clip_grad_norm_(theirs, limit))
    for one, other in zip(ours, theirs, strict=True):
        assert one.grad is not None
        assert other.grad is not None
        assert torch.equal(one.grad, other.grad)
    assert clip_gradients([nn.Parameter(torch.zeros(1))], limit) == 0.0
