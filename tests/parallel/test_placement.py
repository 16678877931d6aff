"""What is traded for memory and speed changes nothing else."""

from __future__ import annotations

import torch
from torch import nn

from framework.parallel.placement import Placement


class _Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return torch.tanh(self.linear(x))


def _gradients(placement: Placement) -> tuple[list[torch.Tensor], int, list[str]]:
    torch.manual_seed(0)
    block = _Counting()
    placement.prepare([block])
    block(torch.randn(3, 4, requires_grad=True)).sum().backward()
    return (
        [p.grad for p in block.parameters() if p.grad is not None],
        block.calls,
        [n for n, _ in block.named_parameters()],
    )


def test_recomputation_runs_the_block_twice_and_changes_no_gradient_or_name() -> None:
    plain, calls, names = _gradients(Placement())
    again, recomputed, same_names = _gradients(Placement(activation_checkpointing=True))
    assert (calls, recomputed) == (1, 2)
    assert names == same_names
    for a, b in zip(plain, again, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_the_trainer_gets_what_the_recipe_says() -> None:
    arguments = Placement(accelerator="cpu", devices=1, precision="32-true", deterministic=True).trainer_arguments()
    assert arguments == {"accelerator": "cpu", "devices": 1, "precision": "32-true", "deterministic": True}
