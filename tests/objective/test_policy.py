"""The whole objective of a step, against the formula written out answer by answer in float64."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor, nn

from framework.objective.advantages import MeanCentered
from framework.objective.aggregation import SequenceMean, TokenMean
from framework.objective.correction import EngineCorrection
from framework.objective.kl import KLPenalty
from framework.objective.policy import PolicyObjective, SampledTokens
from framework.objective.policy_loss import PPOClip, Reinforce
from framework.objective.token_logprobs import TokenScores

SAMPLES = torch.tensor([1, 0, 0, 2, 0, 1])
ADVANTAGES = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
WORDS = 5


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


LOGITS = 2 * drawn(0, 6, WORDS)
TAKEN = torch.tensor([0, 4, 2, 2, 1, 3])
NOW = LOGITS.log_softmax(-1).gather(1, TAKEN[:, None])[:, 0]
OLD, ENGINE, REFERENCE = NOW + 0.4 * drawn(1, 6), NOW + 0.6 * drawn(2, 6), NOW + drawn(3, 6)


def formula(logits: Tensor, aggregation: str) -> Tensor:
    """Of the step: dual-clipped PPO within 0.2 and 0.28, weights up to 2, k3 by 0.1, entropy by 0.01."""
    answers = []
    for answer in range(3):
        losses = []
        for token in SAMPLES.eq(answer).nonzero()[:, 0].tolist():
            every = logits[token].log_softmax(-1)
            logprob, advantage = every[TAKEN[token]], ADVANTAGES[answer]
            rho = (logprob - OLD[token]).exp()
            gain = torch.minimum(rho * advantage, rho.clamp(0.8, 1.28) * advantage)
            gain = torch.maximum(gain, 1.5 * advantage) if advantage < 0 else gain
            weight = min(math.exp(OLD[token] - ENGINE[token]), 2.0)
            d = REFERENCE[token] - logprob
            losses.append(-weight * gain + 0.1 * (d.exp() - d - 1) + 0.01 * (every.exp() * every).sum())
        answers.append(torch.stack(losses))
    if aggregation == "tokens":
        return torch.cat(answers).mean()
    return torch.stack([losses.mean() for losses in answers]).mean()


@pytest.mark.parametrize("aggregation", ["tokens", "answers"])
def test_all_parts_together_are_the_formula(aggregation: str) -> None:
    objective = PolicyObjective(
        MeanCentered(), PPOClip(0.2, 0.28, dual=1.5), TokenMean() if aggregation == "tokens" else SequenceMean(),
        KLPenalty(0.1), EngineCorrection("token", "clip", 2.0), entropy_weight=0.01, chunk=4,
    )  # fmt: skip
    ours, theirs = (LOGITS.clone().requires_grad_() for _ in range(2))
    scored = objective.score(ours, nn.Identity(), TAKEN)
    found = objective(scored, SampledTokens(SAMPLES, ADVANTAGES, OLD, ENGINE, REFERENCE))
    mean = found.total / objective.aggregation.denominator(6, 3)
    expected = formula(theirs, aggregation)
    torch.testing.assert_close(mean, expected)
    mean.backward()
    expected.backward()
    torch.testing.assert_close(ours.grad, theirs.grad)
    assert theirs.grad is not None
    assert theirs.grad.abs().max() > 0.01
    metrics = found.diagnostics.metrics()
    assert metrics["clip_low_share"] + metrics["clip_high_share"] + metrics["dual_clip_share"] > 0
    assert metrics["engine_outside_share"] > 0
    assert metrics["reference_kl"] > 0


def plain(**more: object) -> PolicyObjective:
    return PolicyObjective(MeanCentered(), Reinforce(), TokenMean(), **more)  # type: ignore[arg-type]


SCORED = TokenScores(NOW, torch.zeros(6, dtype=torch.float64))


def test_without_old_log_probabilities_the_present_ones_are_meant() -> None:
    objective = PolicyObjective(MeanCentered(), PPOClip(0.2, 0.2), TokenMean())
    logprobs = NOW.clone().requires_grad_()
    found = objective(TokenScores(logprobs, SCORED.entropies), SampledTokens(SAMPLES, ADVANTAGES))
    found.total.backward()
    assert logprobs.grad is not None
    torch.testing.assert_close(logprobs.grad, -ADVANTAGES[SAMPLES])


def test_stale_tokens_without_a_correction_are_held_to_the_policy_that_drew_them() -> None:
    stale, loss = torch.tensor([True, True, False, False, True, False]), PPOClip(0.2, 0.2)
    objective = PolicyObjective(MeanCentered(), loss, TokenMean())
    found = objective(SCORED, SampledTokens(SAMPLES, ADVANTAGES, OLD, ENGINE, stale=stale))
    behind = torch.where(stale, ENGINE, OLD)
    expected = loss(NOW, behind, ADVANTAGES[SAMPLES], SAMPLES, 3).loss.sum()
    torch.testing.assert_close(found.total, expected)
    corrected = dataclasses.replace(objective, correction=EngineCorrection("token", "clip", 2.0))
    tokens = SampledTokens(SAMPLES, ADVANTAGES, OLD, ENGINE)
    told = dataclasses.replace(tokens, stale=stale)
    torch.testing.assert_close(corrected(SCORED, told).total, corrected(SCORED, tokens).total)


@pytest.mark.parametrize(
    ("kl", "needed"),
    [(None, False), (KLPenalty(0.0), False), (KLPenalty(0.1), True), (KLPenalty(0.1, "k1", "reward"), True)],
)
def test_a_reference_is_needed_only_with_a_weight(kl: KLPenalty | None, needed: bool) -> None:
    assert plain(kl=kl).needs_reference is needed
    if needed:
        with pytest.raises(ValueError, match=r"objective\.kl needs the reference's log-probabilities"):
            plain(kl=kl)(SCORED, SampledTokens(SAMPLES, ADVANTAGES))
    else:
        assert plain(kl=kl)(SCORED, SampledTokens(SAMPLES, ADVANTAGES)).total.isfinite()


def test_a_divergence_in_the_reward_leaves_the_loss_alone() -> None:
    tokens = SampledTokens(SAMPLES, ADVANTAGES, reference_logprobs=REFERENCE)
    found = plain(kl=KLPenalty(0.1, "k1", "reward"))(SCORED, tokens)
    torch.testing.assert_close(found.total, plain()(SCORED, tokens).total)
    assert found.diagnostics.metrics()["reference_kl"] == pytest.approx(float((NOW - REFERENCE).mean()))


def test_what_is_dropped_still_counts() -> None:
    """IcePop: the denominator is that of all tokens, or the others' gradient would grow."""
    engine = NOW.clone()
    engine[0] += 10.0
    logprobs = NOW.clone().requires_grad_()
    objective = plain(correction=EngineCorrection("token", "mask", 5.0, 0.5))
    found = objective(
        TokenScores(logprobs, SCORED.entropies), SampledTokens(SAMPLES, ADVANTAGES, engine_logprobs=engine)
    )
    (found.total / objective.aggregation.denominator(6, 3)).backward()
    expected = -ADVANTAGES[SAMPLES] / 6
    expected[0] = 0.0
    torch.testing.assert_close(logprobs.grad, expected)


def test_a_correction_needs_the_engine() -> None:
    objective = plain(correction=EngineCorrection("token", "clip", 2.0))
    with pytest.raises(ValueError, match=r"objective\.correction needs the engine's log-probabilities"):
        objective(SCORED, SampledTokens(SAMPLES, ADVANTAGES))


def test_a_micro_batch_may_be_empty() -> None:
    nothing = torch.zeros(0, requires_grad=True)
    found = plain()(TokenScores(nothing, nothing), SampledTokens(torch.zeros(0).long(), torch.zeros(0)))
    found.total.backward()
    assert float(found.total.detach()) == 0.0
    assert found.diagnostics.metrics() == {}


def test_log_probabilities_of_other_tokens_are_refused() -> None:
    with pytest.raises(ValueError, match=r"reference_logprobs is \(5,\) for 6 tokens"):
        SampledTokens(SAMPLES, ADVANTAGES, reference_logprobs=REFERENCE[:5])


@pytest.mark.parametrize(("key", "value"), [("temperature", 0.0), ("temperature", -1.0), ("chunk", 0)])
def test_bad_arguments_are_named(key: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"objective.{key}: {value}"):
        plain(**{key: value})
