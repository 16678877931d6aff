"""Intervals against scipy's and published ones."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest

from framework.evaluation.intervals import (
    FEWEST_CHANGED,
    bootstrap,
    excludes_zero,
    over_scene_pairs,
    share_difference,
    wilson,
)


@pytest.mark.parametrize(("hits", "count"), [(0, 10), (3, 16), (50, 100), (84, 84)])
def test_a_shares_interval_is_wilsons(hits: int, count: int) -> None:
    expected = binomtest(hits, count).proportion_ci(method="wilson")
    assert wilson(hits / count, count) == pytest.approx((expected.low, expected.high))


def test_a_difference_of_shares_has_newcombes_interval() -> None:
    # Newcombe 1998, table II: 56/70 - 48/80, method 10.
    assert share_difference(48 / 80, 80, 56 / 70, 70) == pytest.approx((0.0524, 0.3339), abs=5e-5)


def test_the_bootstrap_agrees_with_the_standard_error_of_kinds() -> None:
    values = {str(kind): value for kind, value in enumerate(np.random.default_rng(1).normal(5.0, 2.0, 40))}
    interval = bootstrap(values, dict.fromkeys(values, 3.0))
    assert interval is not None
    error = float(np.std(list(values.values())) / np.sqrt(len(values)))
    assert interval == pytest.approx((-1.96 * error, 1.96 * error), rel=0.1)
    assert bootstrap({"a": 1.0, "b": 2.0}, {"a": 3.0, "b": 3.0}) is None


def test_only_an_interval_on_one_side_of_zero_exceeds_the_noise() -> None:
    assert excludes_zero(share_difference(0.2, 500, 0.5, 500))
    assert not excludes_zero(share_difference(0.2, 20, 0.3, 20))
    assert not excludes_zero(None)


def test_few_scenes_that_changed_say_nothing_and_none_or_many_do() -> None:
    def pairs(changed: int) -> tuple[dict[str, tuple[float, float]], ...]:
        old = {str(scene): (float(scene < 10), 1.0) for scene in range(200)}
        return old, {name: (0.0, 1.0) if int(name) < changed else row for name, row in old.items()}

    assert over_scene_pairs(*pairs(FEWEST_CHANGED - 1)) is None
    unchanged = over_scene_pairs(*pairs(0))
    assert unchanged is not None
    assert (unchanged.low, unchanged.high) == (0.0, 0.0)
    found = over_scene_pairs(*pairs(10))
    assert found is not None
    assert found.low < 0.0 < found.high
