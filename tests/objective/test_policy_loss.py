"""Policy losses of single tokens: by hand, at and beyond their bounds, with gradients."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from framework.objective.policy_loss import (
    CISPO,
    GSPO,
    PolicyLoss,
    PPOClip,
    Reinforce,
    TokenLosses,
    log_ratio,
    sequence_log_ratio,
)

ONE = torch.tensor([0])
"""A single token of a single answer."""


def at(loss: PolicyLoss, ratio: float, advantage: float) -> tuple[TokenLosses, float]:
    """The loss of a token with that ratio, and its gradient by the token's log-probability."""
    old = torch.tensor([-1.5], dtype=torch.float64)
    logprobs = (old + math.log(ratio)).requires_grad_()
    found = loss(logprobs, old, torch.tensor([advantage], dtype=torch.float64), ONE, 1)
    found.loss.sum().backward()
    assert logprobs.grad is not None
    return found, float(logprobs.grad)


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient", "held"),
    [
        (1.0, 2.0, -2.0, -2.0, None),
        (1.1, 2.0, -2.2, -2.2, None),
        (1.5, 2.0, -2.56, 0.0, "clip_high"),  # 1.28 x 2
        (0.5, 2.0, -1.0, -1.0, None),  # a good token that became rarer is not held
        (1.5, -2.0, 3.0, 3.0, None),  # nor a bad one that became commoner
        (0.9, -2.0, 1.8, 1.8, None),
        (0.5, -2.0, 1.6, 0.0, "clip_low"),  # 0.8 x 2
        (2.9, -2.0, 5.8, 5.8, None),
        (4.0, -2.0, 6.0, 0.0, "dual_clip"),  # 3 x 2
        (4.0, 2.0, -2.56, 0.0, "clip_high"),  # the dual clip is for bad tokens
        (4.0, 0.0, 0.0, 0.0, None),
    ],
)
def test_ppo_clip_by_hand(ratio: float, advantage: float, loss: float, gradient: float, held: str | None) -> None:
    found, slope = at(PPOClip(0.2, 0.28, dual=3.0), ratio, advantage)
    assert found.loss.tolist() == pytest.approx([loss])
    assert slope == pytest.approx(gradient)
    assert found.ratio.tolist() == pytest.approx([ratio])
    assert not found.ratio.requires_grad
    assert {name for name in ("clip_low", "clip_high", "dual_clip") if getattr(found, name).item()} == (
        {held} if held else set()
    )


def test_without_a_dual_clip_the_loss_of_a_bad_token_grows_on() -> None:
    found, slope = at(PPOClip(0.2, 0.2), 50.0, -1.0)
    assert found.loss.tolist() == pytest.approx([50.0])
    assert slope == pytest.approx(50.0)
    assert not found.dual_clip.any()


def paper(ratio: np.ndarray, advantages: np.ndarray, low: float, high: float, dual: float) -> np.ndarray:
    """-min(rho A, clip(rho) A), of A < 0 no more than dual |A| (PPO's equation 7; Ye et al.'s equation 3)."""
    plain = np.minimum(ratio * advantages, np.clip(ratio, 1 - low, 1 + high) * advantages)
    return -np.where(advantages < 0, np.maximum(plain, dual * advantages), plain)


def test_ppo_clip_is_the_papers_minimum() -> None:
    generator = torch.Generator().manual_seed(0)
    logprobs, old, advantages = torch.randn(3, 500, generator=generator, dtype=torch.float64)
    found = PPOClip(0.2, 0.28, dual=3.0)(logprobs, old, advantages, torch.zeros(500).long(), 1)
    expected = paper((logprobs - old).exp().numpy(), advantages.numpy(), 0.2, 0.28, 3.0)
    np.testing.assert_allclose(found.loss.numpy(), expected, rtol=1e-12)
    assert 0 < found.clip_low.sum() < 500
    assert 0 < found.clip_high.sum() < 500
    assert 0 < found.dual_clip.sum() < 500


@pytest.mark.parametrize(
    "loss", [PPOClip(0.2, 0.2), PPOClip(0.2, 0.2, dual=10.0), GSPO(0.2, 0.2), CISPO(4.0), Reinforce()]
)
@pytest.mark.parametrize("advantage", [1.0, -1.0])
@pytest.mark.parametrize("far", [1e4, -1e4])
def test_log_ratios_that_overflow_give_finite_numbers(loss: PolicyLoss, advantage: float, far: float) -> None:
    old = torch.zeros(1)
    logprobs = (old + far).requires_grad_()
    found = loss(logprobs, old, torch.tensor([advantage]), ONE, 1)
    found.loss.sum().backward()
    assert found.loss.isfinite().all()
    assert found.ratio.tolist() == pytest.approx([math.exp(math.copysign(20, far))])
    assert logprobs.grad is not None
    assert logprobs.grad.isfinite().all()


def test_a_token_log_ratio_beyond_its_limit_has_no_gradient() -> None:
    logprobs = torch.tensor([25.0, -25.0, 19.0], requires_grad=True)
    found = log_ratio(logprobs, torch.zeros(3))
    found.sum().backward()
    assert found.tolist() == [20.0, -20.0, 19.0]
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == [0.0, 0.0, 1.0]


SAMPLES = torch.tensor([0, 2, 0, 2, 2])
"""Of three answers, the second has no token here."""
LOG_RATIOS = torch.tensor([0.2, 0.3, 0.4, -0.3, 0.6], dtype=torch.float64)
"""Means: 0.3 of the first, 0.2 of the third."""


def test_the_ratio_of_an_answer_is_the_mean_of_its_tokens() -> None:
    old = torch.linspace(-3, -1, 5, dtype=torch.float64)
    found = sequence_log_ratio(old + LOG_RATIOS, old, SAMPLES, 3)
    assert found.tolist() == pytest.approx([0.3, 0.2, 0.3, 0.2, 0.2])


def test_gspo_has_the_gradient_of_the_papers_sequence_objective() -> None:
    """Equation 5 of the paper: mean over answers of min(s A, clip(s) A), through s itself."""
    old = torch.linspace(-3, -1, 5, dtype=torch.float64)
    advantages = torch.tensor([1.0, 0.0, -2.0], dtype=torch.float64)
    ours, theirs = ((old + LOG_RATIOS).requires_grad_() for _ in range(2))
    found = GSPO(0.3, 0.4)(ours, old, advantages[SAMPLES], SAMPLES, 3)
    weights = torch.tensor([1 / 2, 1 / 3, 1 / 2, 1 / 3, 1 / 3], dtype=torch.float64)
    (found.loss * weights).sum().backward()
    total = torch.zeros((), dtype=torch.float64)
    for answer in (0, 2):
        s = (theirs - old)[SAMPLES.eq(answer)].mean().exp()
        total = total - torch.min(s * advantages[answer], s.clamp(0.7, 1.4) * advantages[answer])
    total.backward()
    assert ours.grad is not None
    assert theirs.grad is not None
    torch.testing.assert_close((found.loss * weights).sum(), total)
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_gspo_clips_whole_answers() -> None:
    old = torch.zeros(5, dtype=torch.float64)
    logprobs = LOG_RATIOS.clone().requires_grad_()
    found = GSPO(0.2, 0.25)(logprobs, old, torch.ones(5, dtype=torch.float64), SAMPLES, 3)
    found.loss.sum().backward()
    assert found.clip_high.tolist() == [True, False, True, False, False]  # e^0.3 > 1.25 > e^0.2
    assert found.loss.tolist() == pytest.approx([-1.25, -math.exp(0.2), -1.25, -math.exp(0.2), -math.exp(0.2)])
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == pytest.approx([0.0, -math.exp(0.2), 0.0, -math.exp(0.2), -math.exp(0.2)])


@pytest.mark.parametrize(
    ("ratio", "weight", "held"), [(2.0, 2.0, None), (7.0, 5.0, "clip_high"), (0.3, 0.5, "clip_low"), (0.7, 0.7, None)]
)
@pytest.mark.parametrize("advantage", [1.5, -1.5])
def test_cispo_by_hand(ratio: float, weight: float, held: str | None, advantage: float) -> None:
    """The gradient is the clipped weight's, never 0."""
    found, slope = at(CISPO(high=4.0, low=0.5), ratio, advantage)
    assert found.loss.tolist() == pytest.approx([-weight * advantage * (math.log(ratio) - 1.5)])
    assert slope == pytest.approx(-weight * advantage)
    assert {name for name in ("clip_low", "clip_high", "dual_clip") if getattr(found, name).item()} == (
        {held} if held else set()
    )


def test_cispo_has_no_lower_bound_of_itself() -> None:
    found, slope = at(CISPO(high=4.0), 1e-4, 1.0)
    assert slope == pytest.approx(-1e-4)
    assert not found.clip_low.any()


def test_reinforce_by_hand() -> None:
    found, slope = at(Reinforce(), 3.0, -2.0)
    assert found.loss.tolist() == pytest.approx([2 * (math.log(3) - 1.5)])
    assert slope == 2.0
    assert found.ratio.tolist() == pytest.approx([3.0])


@pytest.mark.parametrize("loss", [PPOClip(0.2, 0.28, dual=10.0), GSPO(3e-4, 4e-4), CISPO(4.0), Reinforce()])
def test_the_first_update_has_the_policy_gradient_and_holds_nothing(loss: PolicyLoss) -> None:
    logprobs = torch.tensor([-1.0, -2.0, -0.1, -3.0, -1.0], dtype=torch.float64, requires_grad=True)
    advantages = torch.tensor([1.0, -2.0, 1.0, -2.0, -2.0], dtype=torch.float64)
    found = loss(logprobs, logprobs.detach(), advantages, SAMPLES, 3)
    found.loss.sum().backward()
    assert logprobs.grad is not None
    torch.testing.assert_close(logprobs.grad, -advantages)
    assert found.ratio.tolist() == [1.0] * 5
    assert not (found.clip_low | found.clip_high | found.dual_clip).any()


@pytest.mark.parametrize("loss", [PPOClip(0.2, 0.28, dual=3.0), GSPO(0.2, 0.3)])
def test_gradients_are_those_of_finite_differences(loss: PolicyLoss) -> None:
    """GSPO's only as a mean over each answer's tokens, which it is meant for."""
    generator = torch.Generator().manual_seed(1)
    old, noise, advantages = torch.randn(3, 12, generator=generator, dtype=torch.float64)
    samples = torch.arange(12) % 3
    weights = 1.0 / torch.bincount(samples)[samples]

    def total(logprobs: Tensor) -> Tensor:
        return (loss(logprobs, old, advantages[:3][samples], samples, 3).loss * weights).sum()

    assert torch.autograd.gradcheck(total, ((old + 0.3 * noise).requires_grad_(),))


def test_no_tokens_have_no_loss() -> None:
    nothing = torch.zeros(0, requires_grad=True)
    for loss in (PPOClip(0.2, 0.2), GSPO(0.1, 0.1), CISPO(4.0), Reinforce()):
        assert loss(nothing, nothing.detach(), torch.zeros(0), torch.zeros(0).long(), 0).loss.shape == (0,)


@pytest.mark.parametrize(
    "make", [lambda: PPOClip(-0.1, 0.2), lambda: PPOClip(1.1, 0.2), lambda: GSPO(0.1, -1.0), lambda: CISPO(-1.0)]
)
def test_bad_bounds_are_named(make: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match="distances from a ratio of 1"):
        make()


@pytest.mark.parametrize("dual", [1.0, 0.5])
def test_a_dual_clip_below_one_is_refused(dual: float) -> None:
    with pytest.raises(ValueError, match=r"loss\.dual"):
        PPOClip(0.2, 0.2, dual=dual)
