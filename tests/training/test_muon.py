"""Muon orthogonalizes the matrices of hidden layers, and leaves everything else to AdamW."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

from framework.checkpoint.retention import KeepLast
from framework.checkpoint.store import CheckpointStore
from framework.parallel.fake_mesh import fake_mesh
from framework.training.muon import QUINTIC, Muon, orthogonalize
from framework.training.planner.optimizer import optimizer_bytes
from framework.training.planner.trace import Allocations


def trained(make: Any, weight: torch.Tensor, steps: int = 5, **options: Any) -> torch.Tensor:
    """`weight` after steps along the same gradients at every call."""
    parameter = nn.Parameter(weight.clone())
    optimizer = make([{"params": [parameter], **options}])
    draw = torch.Generator().manual_seed(1)
    for _ in range(steps):
        parameter.grad = torch.randn(weight.shape, generator=draw)
        optimizer.step()
    return parameter.detach()


@pytest.mark.parametrize("shape", [(6, 6), (4, 9), (9, 4), (3, 5, 8)])
def test_singular_values_go_through_the_polynomial_and_vectors_stay(shape: tuple[int, ...]) -> None:
    matrices = np.random.default_rng(0).normal(size=shape)
    left, values, right = np.linalg.svd(matrices, full_matrices=False)
    values /= np.linalg.norm(values, axis=-1, keepdims=True)
    for _ in range(5):
        values = sum(factor * values**power for factor, power in zip(QUINTIC, (1, 3, 5), strict=True))
    expected = (left * values[..., None, :]) @ right
    found = orthogonalize(torch.from_numpy(matrices), iterations=5)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-4)


@pytest.mark.parametrize("shape", [(24, 24), (16, 40)])
def test_it_is_torchs_own_to_bfloat16(shape: tuple[int, int]) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    theirs = trained(torch.optim.Muon, weight, lr=1e-2, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    ours = trained(Muon, weight, lr=1e-2, weight_decay=0.1, matrices=True)
    moved = (theirs - weight).norm()
    assert (ours - theirs).norm() < 0.02 * moved


def test_what_is_no_matrix_is_adamws_bit_for_bit() -> None:
    weight = torch.randn(7, 5, generator=torch.Generator().manual_seed(0))
    options: dict[str, Any] = {"lr": 1e-2, "betas": (0.9, 0.95), "weight_decay": 0.1}
    ours = trained(Muon, weight, **options, matrices=False)
    assert torch.equal(ours, trained(torch.optim.AdamW, weight, **options, fused=True))


def test_experts_are_updated_one_by_one() -> None:
    stack = torch.randn(3, 6, 4, generator=torch.Generator().manual_seed(0))
    gradient = torch.randn(3, 6, 4, generator=torch.Generator().manual_seed(1))

    def step(weight: torch.Tensor, of: torch.Tensor) -> torch.Tensor:
        parameter = nn.Parameter(weight.clone())
        parameter.grad = of.clone()
        Muon([{"params": [parameter], "matrices": True}], lr=0.1).step()
        return parameter.detach()

    alone = torch.stack([step(weight, of) for weight, of in zip(stack, gradient, strict=True)])
    torch.testing.assert_close(step(stack, gradient), alone, rtol=0, atol=1e-6)


def test_without_a_gradient_nothing_changes() -> None:
    parameter = nn.Parameter(torch.ones(3, 3))
    Muon([{"params": [parameter], "matrices": True}], lr=0.1).step()
    assert torch.equal(parameter, torch.ones(3, 3))


def test_a_plan_counts_one_number_for_every_weight_of_a_matrix_and_two_for_others() -> None:
    for matrices, numbers in ((True, 1), (False, 2)):
        groups = [({"lr": 1e-3, "weight_decay": 0.1, "matrices": matrices}, [(1000, 300)])]
        state, _ = optimizer_bytes(Muon, groups, torch.float32, foreach=False)
        assert state == pytest.approx(numbers * 4 * 300_000, abs=16)


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("shape", [(96, 64), (50, 128), (6, 48, 32)])
@pytest.mark.fast_cases(2)
def test_a_plan_counts_the_matrix_that_every_rank_gathers(ranks: int, shape: tuple[int, ...]) -> None:
    """Against what the real step allocates for a sharded matrix, on a mesh whose collectives move nothing."""
    with fake_mesh((1, ranks, 1)) as mesh:
        whole = torch.zeros(shape)
        cut = [Replicate(), Shard(0) if ranks > 1 else Replicate(), Replicate()]
        parameter = nn.Parameter(distribute_tensor(whole, mesh, cut))
        part = tuple(parameter.to_local().shape)
        parameter.grad = distribute_tensor(whole, mesh, cut)
        optimizer = Muon([{"params": [parameter], "matrices": True}])
        optimizer.found_inf = torch.zeros(())  # as in training
        optimizer.step()
        with Allocations([parameter, parameter.grad, *optimizer.state[parameter].values()]) as measured:
            optimizer.step()
    groups = [({"matrices": True}, [part])]
    _, planned = optimizer_bytes(Muon, groups, torch.float32, foreach=False, whole=[[shape]], ranks=ranks)
    assert planned == pytest.approx(measured.peak, rel=0.05), f"{planned / measured.peak:.3f} of what was measured"


def test_a_checkpoint_goes_on_bit_for_bit(tmp_path: Path) -> None:
    def make() -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8))
        matrix, *others = model.parameters()
        return model, Muon([{"params": [matrix], "matrices": True, "lr": 1e-2}, {"params": others, "lr": 1e-3}])

    def train(model: nn.Module, optimizer: torch.optim.Optimizer, start: int, end: int) -> None:
        for step in range(start, end):
            inputs = torch.randn(4, 8, generator=torch.Generator().manual_seed(step))
            (model(inputs) - 1).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()

    (model, optimizer), store = make(), CheckpointStore(tmp_path, KeepLast())
    train(model, optimizer, 0, 5)
    store.save(5, 1, model, optimizer, {}, {})
    train(model, optimizer, 5, 10)
    resumed, its_optimizer = make()
    newest = store.newest()
    assert newest is not None
    store.load(newest, resumed, its_optimizer)
    train(resumed, its_optimizer, 5, 10)
    for one, other in zip(model.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)
