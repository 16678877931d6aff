"""Rewards of two engines are compared step by step."""

from __future__ import annotations

from typing import Any

import pytest

from tools.bench.vllm_reward import compare


def told(rewards: list[float]) -> dict[str, dict[int, float]]:
    return {"reward": dict(enumerate(rewards, start=1)), "gap": {1: 1e-6, 2: 3e-6}}


def test_equal_steps_of_a_seed_are_pairs() -> None:
    embedded = [-5.0, -1.0, 0.5, 3.0, 2.0, 0.0]
    runs = {
        seed: {"embedded": told([value + 10 * seed for value in embedded]),
               "vllm": told([value + 10 * seed + change for value, change in zip(embedded, changes, strict=True)])}
        for seed, changes in ((0, [0.1, -0.1, 0.1, -0.1, 0.1, -0.1]), (1, [0.3, 0.1, 0.3, 0.1, 0.3, 0.1]))
    }  # fmt: skip
    found: dict[str, Any] = compare(runs)
    assert (found["steps"], found["largest_gap_nats"]) == (12, 3e-6)
    assert found["difference"] == pytest.approx(0.1)
    low, high = found["interval_95"]
    # The standard error of 12 differences that deviate by 0.141 is 0.041: what both rewards have in common is no noise.
    assert low == pytest.approx(0.1 - 1.96 * 0.041, abs=0.01)
    assert high == pytest.approx(0.1 + 1.96 * 0.041, abs=0.01)
    assert found["reward"]["vllm"] - found["reward"]["embedded"] == pytest.approx(0.1)


def test_runs_of_other_lengths_are_not_compared() -> None:
    with pytest.raises(ValueError, match="other steps"):
        compare({0: {"embedded": told([1.0, 2.0]), "vllm": told([1.0])}})
