"""Weights and denominators by hand; how a step is split does not change its mean."""

from __future__ import annotations

import pytest
import torch

from framework.objective.aggregation import Aggregation, ConstantLength, SequenceMean, TokenMean
from framework.objective.normalisation import loss_scale

SAMPLES = torch.tensor([0, 0, 0, 2, 1, 2])
LOSSES = torch.tensor([1.0, 2.0, 6.0, 4.0, 5.0, 0.0])
"""Answers of 3, 1 and 2 tokens, whose means are 3, 5 and 2."""


@pytest.mark.parametrize(
    ("aggregation", "expected"),
    [(TokenMean(), 18 / 6), (SequenceMean(), (3 + 5 + 2) / 3), (ConstantLength(8), 18 / (3 * 8))],
)
def test_means_by_hand(aggregation: Aggregation, expected: float) -> None:
    weights = aggregation.weights(SAMPLES, 3)
    assert weights.dtype == torch.float32
    assert float((weights * LOSSES).sum()) / aggregation.denominator(6, 3) == pytest.approx(expected)


@pytest.mark.parametrize("aggregation", [TokenMean(), SequenceMean(), ConstantLength(5)])
def test_answers_may_be_summed_apart(aggregation: Aggregation) -> None:
    together = float((aggregation.weights(SAMPLES, 3) * LOSSES).sum())
    apart = 0.0
    for answer in range(3):
        here = LOSSES[SAMPLES.eq(answer)]
        apart += float((aggregation.weights(torch.zeros(len(here)).long(), 1) * here).sum())
    assert apart == pytest.approx(together)


def test_an_answer_without_tokens_weighs_nothing_and_counts() -> None:
    weights = SequenceMean().weights(torch.tensor([0, 0, 2]), 4)
    assert weights.tolist() == [0.5, 0.5, 1.0]
    assert SequenceMean().denominator(3, 4) == 4


@pytest.mark.parametrize("aggregation", [TokenMean(), SequenceMean(), ConstantLength(5)])
def test_nothing_has_no_weights(aggregation: Aggregation) -> None:
    assert aggregation.weights(torch.zeros(0).long(), 0).shape == (0,)


@pytest.mark.parametrize("length", [0, -1])
def test_a_length_below_one_is_refused(length: int) -> None:
    with pytest.raises(ValueError, match=r"aggregation\.length"):
        ConstantLength(length)


def test_a_step_without_answers_says_so() -> None:
    with pytest.raises(ValueError, match="no supervised tokens"):
        loss_scale(SequenceMean().denominator(0, 0), 4)
