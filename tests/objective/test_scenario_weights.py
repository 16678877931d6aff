"""Shares of kinds of scenario: by hand, never forgotten, and without end."""

from __future__ import annotations

import pytest
import torch

from framework.objective.scenario_weights import ScenarioWeights

SUCCESSES = torch.tensor([7.0, 3.0, 0.0, 0.0])
TRIALS = torch.tensor([8.0, 6.0, 6.0, 0.0])
"""Rates 8/10, 4/8, 1/8 and, never tried, 1/2."""


def test_hard_kinds_by_hand() -> None:
    found = ScenarioWeights("hard", 1.0, spread=0.0)(SUCCESSES, TRIALS)
    pulls = [0.2, 0.5, 0.875, 0.5]
    assert found.tolist() == pytest.approx([pull / sum(pulls) for pull in pulls])


def test_uncertain_kinds_by_hand() -> None:
    found = ScenarioWeights("uncertain", 2.0, spread=0.2)(SUCCESSES, TRIALS)
    pulls = [0.16**2, 0.25**2, 0.109375**2, 0.25**2]
    assert found.tolist() == pytest.approx([0.05 + 0.8 * pull / sum(pulls) for pull in pulls])


@pytest.mark.parametrize("focus", ["hard", "uncertain"])
@pytest.mark.parametrize("power", [0.0, 1.0, 4.0])
def test_shares_add_up_and_none_is_forgotten(focus: str, power: float) -> None:
    shares = ScenarioWeights(focus, power)(torch.tensor([1e6, 0.0, 10.0]), torch.tensor([1e6, 1e6, 20.0]))  # type: ignore[arg-type]
    assert float(shares.sum()) == pytest.approx(1.0)
    assert shares.min() >= 0.2 / 3 - 1e-6


@pytest.mark.parametrize("focus", ["hard", "uncertain"])
def test_kinds_that_all_succeed_a_million_times_still_have_shares(focus: str) -> None:
    trials = torch.tensor([1e8, 2e8, 1e6])
    shares = ScenarioWeights(focus, 10.0, spread=0.0)(trials, trials)  # type: ignore[arg-type]
    assert shares.tolist() == pytest.approx([0.0, 0.0, 1.0], abs=1e-6)


def test_no_power_and_a_whole_spread_leave_all_kinds_alike() -> None:
    for weights in (ScenarioWeights(power=0.0), ScenarioWeights(spread=1.0)):
        assert weights(SUCCESSES, TRIALS).tolist() == pytest.approx([0.25] * 4)


def test_old_measurements_fade() -> None:
    weights, counts = ScenarioWeights(memory=0.5), torch.tensor([8.0, 0.0])
    for measured in ([0.0, 2.0], [4.0, 0.0]):
        counts = weights.decay(counts, torch.tensor(measured))
    assert counts.tolist() == [6.0, 1.0]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"focus": "easy"}, r"scenarios\.focus"),
        ({"power": -1.0}, r"scenarios\.power"),
        ({"spread": 1.1}, "spread 1.1"),
        ({"memory": -0.1}, "memory -0.1"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, object], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        ScenarioWeights(**arguments)  # type: ignore[arg-type]
