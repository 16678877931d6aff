"""What is logged of an update: by hand, and the same however a step is split."""

from __future__ import annotations

import math
from functools import reduce
from operator import add

import pytest
import torch
from torch import Tensor

from framework.objective.diagnostics import Diagnostics, diagnose
from framework.objective.policy_loss import PPOClip
from framework.objective.token_logprobs import TokenScores

OLD = torch.tensor([-1.0, -2.0, -3.0, -0.5])
RATIOS = torch.tensor([1.0, 1.5, 0.5, 20.0])
ADVANTAGES = torch.tensor([1.0, 2.0, -1.0, -3.0])
ENTROPIES = torch.tensor([0.5, 1.0, 1.5, 3.0])
ENGINE = OLD - torch.tensor([2.0, 1.0, 0.5, 1.0]).log()
"""Weights pi_train / pi_engine of 2, 1, 1/2, 1."""


def of(chosen: Tensor, **more: Tensor) -> Diagnostics:
    """Of some of the tokens; `more` by the argument's name, of all of them."""
    logprobs, old, advantages = (OLD + RATIOS.log())[chosen], OLD[chosen], ADVANTAGES[chosen]
    losses = PPOClip(0.2, 0.2, dual=10.0)(logprobs, old, advantages, torch.zeros_like(chosen), 1)
    given = {name: values[chosen] for name, values in more.items()}
    return diagnose(TokenScores(logprobs, ENTROPIES[chosen]), losses, advantages, old, **given)


MORE = {
    "engine_logprobs": ENGINE,
    "outside": torch.tensor([True, False, True, False]),
    "reference_kl": torch.tensor([0.0, 1.0, 2.0, 5.0]),
}
EVERY = torch.arange(4)


def test_metrics_by_hand() -> None:
    found = of(EVERY, **MORE).metrics()
    error = [math.log(2), 0.0, math.log(2), 0.0]
    weights = [2.0, 1.0, 0.5, 1.0]
    expected = {
        "entropy": 6.0 / 4,
        "approximate_kl": (0.0 + (0.5 - math.log(1.5)) + (math.log(2) - 0.5) + 10.0) / 4,  # the last held at 10
        "clip_low_share": 1 / 4,
        "clip_high_share": 1 / 4,
        "dual_clip_share": 1 / 4,
        "ratio_min": 0.5,
        "ratio_max": 20.0,
        "advantage_mean": -1 / 4,
        "advantage_min": -3.0,
        "advantage_max": 2.0,
        "reference_kl": 2.0,
        "engine_error": sum(error) / 4,
        "engine_kl": sum(w - math.log(w) - 1 for w in weights) / 4,
        "engine_error_max": math.log(2),
        "engine_weight_max": 2.0,
        "engine_weight_mean": 4.5 / 4,
        "engine_ess": 4.5**2 / (4 * (4 + 1 + 0.25 + 1)),
        "engine_outside_share": 2 / 4,
    }
    assert found == pytest.approx(expected, rel=1e-5)


def test_older_weights_are_not_taken_for_a_mismatch() -> None:
    """The first two tokens are stale: 2 and 1 are how far the policy has moved, 1/2 and 1 the engine's doing."""
    found = of(EVERY, **MORE, stale=torch.tensor([True, True, False, False])).metrics()
    assert found["engine_error"] == pytest.approx(math.log(2) / 2)
    assert found["engine_weight_mean"] == pytest.approx(1.5 / 2)
    assert found["engine_outside_share"] == found["stale_outside_share"] == found["stale_share"] == 1 / 2
    assert found["stale_kl"] == pytest.approx((2.0 - math.log(2) - 1) / 2)
    every = of(EVERY, **MORE, stale=torch.ones(4, dtype=torch.bool)).metrics()
    assert not {name for name in every if name.startswith("engine")}


def test_without_reference_and_engine_nothing_is_said_of_them() -> None:
    names = of(EVERY).metrics().keys()
    assert not {name for name in names if name.startswith(("reference", "engine"))}
    assert {"entropy", "ratio_max", "approximate_kl"} <= names


@pytest.mark.parametrize("parts", [[[0, 1, 2, 3]], [[0], [1, 2, 3]], [[3], [2], [1], [0]], [[0, 1], [], [2, 3]]])
def test_the_same_however_a_step_is_split(parts: list[list[int]]) -> None:
    pieces = [of(torch.tensor(part, dtype=torch.int64), **MORE) for part in parts]
    whole = reduce(add, pieces, Diagnostics.zeros(torch.device("cpu"))).all_reduce(None)
    assert whole.metrics() == pytest.approx(of(EVERY, **MORE).metrics(), rel=1e-12)


def test_no_tokens_have_no_metrics() -> None:
    assert Diagnostics.zeros(torch.device("cpu")).metrics() == {}
    assert of(torch.zeros(0, dtype=torch.int64), **MORE).metrics() == {}


def test_the_same_policies_have_no_mismatch() -> None:
    found = of(EVERY, engine_logprobs=OLD).metrics()
    assert found["engine_ess"] == 1.0
    assert found["engine_error"] == found["engine_kl"] == found["engine_outside_share"] == 0.0


def test_nothing_of_it_has_a_gradient() -> None:
    logprobs = OLD.clone().requires_grad_()
    losses = PPOClip(0.2, 0.2)(logprobs, OLD, ADVANTAGES, torch.zeros(4).long(), 1)
    found = diagnose(TokenScores(logprobs, ENTROPIES), losses, ADVANTAGES, OLD)
    assert not found.sums.requires_grad
    assert not found.peaks.requires_grad
