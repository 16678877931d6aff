"""The loss that keeps experts evenly busy, against the definition in transformers."""

from __future__ import annotations

import pytest
import torch

from framework.objective.expert_balance import balance_metrics, expert_balance

LAYERS, EXPERTS, TOP_K = 3, 8, 2


def logits(tokens: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(tokens, EXPERTS, generator=generator) for _ in range(LAYERS)]


def test_of_one_sample_and_layer_it_is_that_of_transformers() -> None:
    modeling = pytest.importorskip("transformers.models.qwen3_vl_moe.modeling_qwen3_vl_moe")
    samples = torch.tensor([0] * 5 + [1] * 9 + [-1] * 2)
    layers = logits(len(samples))
    ours, tokens = expert_balance(layers, samples, TOP_K)
    theirs = [
        sum(modeling.load_balancing_loss_func((layer[samples == number],), EXPERTS, TOP_K) for number in range(2))
        for layer in layers
    ]
    torch.testing.assert_close(ours, torch.stack(theirs).mean())
    assert tokens.shape == (LAYERS, EXPERTS)
    assert tokens.sum(dim=1).tolist() == [14 * TOP_K] * LAYERS


def test_even_experts_cost_their_number_and_one_that_reads_all_costs_most() -> None:
    even = torch.eye(EXPERTS).mul(1e-4)  # each token barely prefers another expert
    loss, tokens = expert_balance([even], torch.zeros(EXPERTS, dtype=torch.int64), top_k=1)
    assert float(loss) == pytest.approx(1.0, abs=1e-3)
    assert balance_metrics(tokens) == {"experts/busiest": 1.0, "experts/idle": 0.0}
    loss, tokens = expert_balance([torch.eye(EXPERTS)[:1].expand(6, -1) * 50], torch.zeros(6, dtype=torch.int64), 1)
    assert float(loss) == pytest.approx(EXPERTS)
    assert balance_metrics(tokens) == {"experts/busiest": EXPERTS, "experts/idle": 1 - 1 / EXPERTS}


def test_it_is_the_sum_over_parts_of_a_batch_and_its_gradient_too() -> None:
    samples = torch.tensor([0, 0, 1, 1, 1, 2, -1])
    whole = [layer.requires_grad_() for layer in logits(len(samples))]
    loss, tokens = expert_balance(whole, samples, TOP_K)
    loss.backward()
    total, read = torch.zeros(()), torch.zeros(LAYERS, EXPERTS, dtype=torch.float64)
    for part, first in (((samples == 0) | (samples == 1), 0), (samples == 2, 2)):
        cut = [layer.detach()[part].requires_grad_() for layer in whole]
        of_part, of_tokens = expert_balance(cut, samples[part] - first, TOP_K)
        of_part.backward()
        total, read = total + of_part.detach(), read + of_tokens
        for layer, own in zip(whole, cut, strict=True):
            assert layer.grad is not None
            assert own.grad is not None
            torch.testing.assert_close(own.grad, layer.grad[part])
    torch.testing.assert_close(total, loss.detach())
    assert torch.equal(read, tokens)
