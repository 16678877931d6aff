"""Estimators of the divergence: by hand, in float64, against the divergence itself, and their gradients."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from framework.objective.kl import ESTIMATORS, KLPenalty, k1, k2, k3

LOGPROBS = torch.tensor([-1.0, -1.0, -2.0, -0.5])
REFERENCE = torch.tensor([-1.0, -2.0, -1.0, -0.25])
"""d = 0, -1, 1, 0.25."""


def test_vectors_by_hand() -> None:
    assert k1(LOGPROBS, REFERENCE).tolist() == [0.0, 1.0, -1.0, -0.25]
    assert k2(LOGPROBS, REFERENCE).tolist() == [0.0, 0.5, 0.5, 0.03125]
    expected = [0.0, 0.3678794411714423, 0.7182818284590451, 0.0340254166877415]  # 1/e, e - 2, e^0.25 - 1.25
    assert k3(LOGPROBS, REFERENCE).tolist() == pytest.approx(expected, rel=1e-6)


def exact(policy: Tensor, reference: Tensor) -> Tensor:
    """KL(pi || pi_ref) of logits, in nats."""
    ours, theirs = policy.log_softmax(-1), reference.log_softmax(-1)
    return (ours.exp() * (ours - theirs)).sum()


def logits(seed: int, size: int = 12) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("name", ["k1", "k3"])
def test_the_mean_over_all_tokens_is_the_divergence(name: str) -> None:
    policy, reference = logits(0), logits(0) + 0.5 * logits(1)
    ours, theirs = policy.log_softmax(-1), reference.log_softmax(-1)
    mean = (ours.exp() * ESTIMATORS[name](ours, theirs)).sum()
    assert float(mean) == pytest.approx(float(exact(policy, reference)), rel=1e-9)


def test_the_mean_of_k2_is_the_divergence_where_the_two_are_close() -> None:
    policy, reference = logits(0), logits(0) + 0.01 * logits(1)
    ours, theirs = policy.log_softmax(-1), reference.log_softmax(-1)
    assert float((ours.exp() * k2(ours, theirs)).sum()) == pytest.approx(float(exact(policy, reference)), rel=2e-2)


def test_the_gradient_of_k2_is_that_of_the_divergence_and_of_k1_nothing() -> None:
    """Mean over all tokens of the gradient through log pi alone, as the loss has it."""
    reference = (logits(0) + 0.5 * logits(1)).log_softmax(-1)
    gradients = {}
    for name in ("exact", "k1", "k2"):
        policy = logits(0).requires_grad_()
        ours = policy.log_softmax(-1)
        mean = (
            exact(policy, reference) if name == "exact" else (ours.exp().detach() * ESTIMATORS[name](ours, reference))
        )
        mean.sum().backward()
        assert policy.grad is not None
        gradients[name] = policy.grad
    torch.testing.assert_close(gradients["k2"], gradients["exact"])
    torch.testing.assert_close(gradients["k1"], torch.zeros_like(gradients["k1"]))


def test_k3_of_close_policies_keeps_its_digits_and_its_sign() -> None:
    d = torch.cat([torch.logspace(-8, 0, 999), -torch.logspace(-8, 0, 999)])
    found, expected = k3(-d, torch.zeros_like(d)), torch.expm1(d.double()) - d.double()
    assert found.min() >= 0
    assert float((found - expected).abs().max()) < 1e-7
    large = d.abs() > 1e-3
    torch.testing.assert_close(found.double()[large], expected[large], rtol=1e-3, atol=0.0)


@pytest.mark.parametrize("d", [2.7, 100.0, -100.0, math.inf, -math.inf])
def test_k3_is_bounded_and_pulls_no_more_beyond(d: float) -> None:
    logprobs = torch.zeros(1, requires_grad=True)
    found = k3(logprobs, torch.tensor([d]))
    found.sum().backward()
    assert found.tolist() == [10.0]
    assert logprobs.grad is not None
    assert float(logprobs.grad) == 0.0


@pytest.mark.parametrize(("estimator", "expected"), [(k1, -20.0), (k2, 200.0)])
def test_a_distance_is_at_most_twenty(estimator: object, expected: float) -> None:
    assert callable(estimator)
    assert float(estimator(torch.tensor([-1000.0]), torch.tensor([0.0]))) == expected


def test_gradient_of_k3_is_one_less_the_inverse_ratio() -> None:
    logprobs = LOGPROBS.clone().requires_grad_()
    k3(logprobs, REFERENCE).sum().backward()
    assert logprobs.grad is not None
    torch.testing.assert_close(logprobs.grad, 1 - (REFERENCE - LOGPROBS).exp())


def test_taken_off_the_reward_by_hand() -> None:
    """Two answers of one and three tokens, and one without: sums of k1 are 0 and -0.25, times 0.1."""
    penalty = KLPenalty(0.1, "k1", "reward")
    logprobs = LOGPROBS.clone().requires_grad_()
    found = penalty.penalize(torch.tensor([1.0, 1.0, 1.0]), logprobs, REFERENCE, torch.tensor([0, 1, 1, 1]))
    assert found.tolist() == pytest.approx([1.0, 1.025, 1.0])
    assert not found.requires_grad


def test_the_estimate_is_not_weighted() -> None:
    assert KLPenalty(0.5, "k2")(LOGPROBS, REFERENCE).tolist() == [0.0, 0.5, 0.5, 0.03125]


@pytest.mark.parametrize(
    "arguments", [{"weight": -1.0}, {"weight": 0.1, "estimator": "k4"}, {"weight": 0.1, "place": "loss and reward"}]
)
def test_bad_arguments_are_named(arguments: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="kl: estimator"):
        KLPenalty(**arguments)  # type: ignore[arg-type]


def test_k1_in_the_loss_is_refused() -> None:
    with pytest.raises(ValueError, match="k1 in the loss has no gradient on average"):
        KLPenalty(0.1, "k1", "loss")
