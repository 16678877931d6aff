"""Variants of reinforcement learning are compared scene by scene, over seeds."""

from __future__ import annotations

from typing import Any

import pytest

from tools.bench.rl_variants import EVALS, MEASURES, compare


def trained(collisions: list[float], steps: int) -> dict[str, Any]:
    rows = [
        {"scene": f"curve-{number}", "simulation": dict.fromkeys(MEASURES, 0.5) | {"collision": value}}
        for number, value in enumerate(collisions)
    ]
    return {"core_s": 60.0, "steps": steps, "rows": dict.fromkeys(EVALS, rows)}


def test_a_variants_difference_is_of_the_same_scenes_over_all_seeds() -> None:
    single = [trained([1.0, 1.0, 0.0, 0.0, 1.0, 0.0], 90), trained([1.0, 0.0, 0.0, 0.0, 1.0, 0.0], 91)]
    closed = [trained([0.0, 1.0, 0.0, 0.0, 1.0, 0.0], 9), trained([0.0, 0.0, 0.0, 0.0, 1.0, 0.0], 9)]
    single[0]["untrained"] = trained([1.0] * 6, 0)["rows"]
    found = compare({"single": dict(enumerate(single)), "closed_loop": dict(enumerate(closed))})
    assert found["untrained"]["closed_loop"]["collision"] == 1.0
    assert found["single"]["steps"] == [90, 91]
    of_single = found["single"]["simulated_hard"]["collision"]
    assert of_single["of_each_seed"] == pytest.approx([3 / 6, 2 / 6])
    assert of_single["deviation_over_seeds"] == pytest.approx(1 / 6 / 2**0.5)
    assert "difference" not in found["single"]["closed_loop"]
    changed = found["closed_loop"]["closed_loop"]["difference"]
    assert changed["collision"]["mean"] == pytest.approx(-1 / 6)  # one scene of six, in both seeds
    low, high = changed["collision"]["interval_95_over_scenes"]
    assert low < -1 / 6 < high <= 0.0
    assert changed["progress"]["mean"] == 0.0


def test_variants_of_other_scenes_are_not_compared() -> None:
    single, closed = trained([0.0] * 6, 90), trained([0.0] * 5, 9)
    single["untrained"] = single["rows"]
    with pytest.raises(ValueError, match="other scenes"):
        compare({"single": {0: single}, "closed_loop": {0: closed}})
