"""Importance weights between engine and trainer: by hand, bounded, and without gradient."""

from __future__ import annotations

import math

import pytest
import torch

from framework.objective.correction import EngineCorrection, bounded, sequence_weights, token_weights

SAMPLES = torch.tensor([0, 1, 0, 1])
ENGINE = torch.tensor([-1.0, -2.0, -3.0, -0.5])
WEIGHTS = [1.5, 0.25, 4.0, 1.0]
OLD = ENGINE + torch.tensor(WEIGHTS).log()
"""Of the answers as wholes: 1.5 x 4 and 0.25 x 1."""


def test_weights_by_hand() -> None:
    assert token_weights(OLD, ENGINE).tolist() == pytest.approx(WEIGHTS)
    assert sequence_weights(OLD, ENGINE, SAMPLES, 2).tolist() == pytest.approx([6.0, 0.25, 6.0, 0.25])


@pytest.mark.parametrize(
    ("correction", "weight", "outside"),
    [
        (EngineCorrection("token", "clip", 2.0), [1.5, 0.25, 2.0, 1.0], [False, False, True, False]),
        (EngineCorrection("token", "clip", 2.0, 0.5), [1.5, 0.5, 2.0, 1.0], [False, True, True, False]),
        (EngineCorrection("token", "mask", 3.0, 0.5), [1.5, 0.0, 0.0, 1.0], [False, True, True, False]),
        (EngineCorrection("sequence", "clip", 2.0), [2.0, 0.25, 2.0, 0.25], [True, False, True, False]),
        (EngineCorrection("sequence", "mask", 2.0), [0.0, 0.25, 0.0, 0.25], [True, False, True, False]),
    ],
)
def test_bounds_by_hand(correction: EngineCorrection, weight: list[float], outside: list[bool]) -> None:
    found = correction(OLD, ENGINE, SAMPLES, 2)
    assert found.weight.tolist() == pytest.approx(weight)
    assert found.outside.tolist() == outside


def test_a_weight_on_its_bound_is_inside() -> None:
    found = bounded(torch.tensor([0.5, 2.0, 2.0001]), 0.5, 2.0, "mask")
    assert found.weight.tolist() == [0.5, 2.0, 0.0]
    assert found.outside.tolist() == [False, False, True]


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_the_same_policy_needs_no_correction(level: str) -> None:
    found = EngineCorrection(level, "mask", 2.0, 0.5)(ENGINE, ENGINE, SAMPLES, 2)  # type: ignore[arg-type]
    assert found.weight.tolist() == [1.0] * 4
    assert not found.outside.any()


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_weights_are_constants(level: str) -> None:
    old = OLD.clone().requires_grad_()
    assert not EngineCorrection(level, "clip", 2.0)(old, ENGINE, SAMPLES, 2).weight.requires_grad  # type: ignore[arg-type]


def test_weights_do_not_overflow() -> None:
    far = torch.tensor([0.0, 0.0, -500.0, -500.0])
    assert token_weights(torch.zeros(4), far).tolist() == pytest.approx([1.0, 1.0, math.exp(20), math.exp(20)])
    assert sequence_weights(torch.zeros(4), far, SAMPLES, 2).tolist() == pytest.approx([math.exp(20)] * 4)
    assert sequence_weights(far, torch.zeros(4), SAMPLES, 2).tolist() == pytest.approx([math.exp(-20)] * 4)


@pytest.mark.parametrize(
    "bounds", [{"max": 0.9}, {"max": math.inf}, {"max": 2.0, "min": 1.5}, {"max": 2.0, "min": -1.0}]
)
def test_bounds_that_do_not_hold_one_are_refused(bounds: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="bounds lie on either side of 1"):
        EngineCorrection("token", "clip", **bounds)


@pytest.mark.parametrize(("level", "mode"), [("word", "clip"), ("token", "drop")])
def test_unknown_names_are_refused(level: str, mode: str) -> None:
    with pytest.raises(ValueError, match="give token or sequence, clip or mask"):
        EngineCorrection(level, mode, 2.0)  # type: ignore[arg-type]
