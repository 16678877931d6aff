"""AdamW in bfloat16 keeps what rounding drops."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from framework.checkpoint.retention import KeepLast
from framework.checkpoint.store import CheckpointStore
from framework.training.optim import KahanAdamW
from framework.training.planner.optimizer import optimizer_bytes

Make = Callable[..., torch.optim.Optimizer]


def _steps(make: Make, dtype: torch.dtype, steps: int = 100, **options: Any) -> torch.Tensor:
    """A weight of 1 under gradients of 1: every update has the size of the rate."""
    weight = nn.Parameter(torch.ones(4, 2, dtype=dtype))
    optimizer = make([{"params": [weight]}], **options)
    for _ in range(steps):
        weight.grad = torch.ones_like(weight)
        optimizer.step()
    return weight.detach()


def test_updates_smaller_than_rounding_are_not_lost() -> None:
    options = {"lr": 5e-4, "weight_decay": 0.0}
    assert torch.equal(_steps(torch.optim.AdamW, torch.bfloat16, **options), torch.ones(4, 2, dtype=torch.bfloat16))
    weight = _steps(KahanAdamW, torch.bfloat16, **options)
    exact = _steps(torch.optim.AdamW, torch.float32, **options)
    torch.testing.assert_close(weight.float(), exact, rtol=0, atol=1 / 256)


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_in_float32_it_is_torchs_own(weight_decay: float) -> None:
    options = {"lr": 1e-2, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": weight_decay}
    ours, theirs = (_steps(make, torch.float32, 20, **options) for make in (KahanAdamW, torch.optim.AdamW))
    torch.testing.assert_close(ours, theirs)


def test_a_plan_counts_three_numbers_of_two_bytes_for_every_weight() -> None:
    groups = [({"lr": 1e-3, "weight_decay": 0.1}, [(1000, 300)])]
    state, transient = optimizer_bytes(KahanAdamW, groups, torch.bfloat16, foreach=True)
    assert state == 3 * 2 * 300_000
    assert 0 < transient < state


def test_a_checkpoint_goes_on_bit_for_bit(tmp_path: Path) -> None:
    def make() -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        model = nn.Linear(8, 8).to(torch.bfloat16)
        return model, KahanAdamW([{"params": list(model.parameters()), "lr": 1e-3}])

    def train(model: nn.Module, optimizer: torch.optim.Optimizer, start: int, end: int) -> None:
        for step in range(start, end):
            inputs = torch.randn(4, 8, generator=torch.Generator().manual_seed(step)).to(torch.bfloat16)
            model(inputs).float().square().sum().backward()
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
