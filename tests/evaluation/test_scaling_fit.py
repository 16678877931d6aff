"""Laws are found again from losses that they make; intervals hold what they are of."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import nnls

from framework.evaluation.scaling_fit import (
    EXPONENTS,
    Law,
    PowerLaw,
    _nonnegative,
    bootstrap_runs,
    fit_law,
    fit_power,
    frontier,
    slope,
)

N, D = (each.ravel() for each in np.meshgrid([1e5, 3e5, 1e6], [1e5, 1e6, 1e7]))


def test_a_law_is_found_again() -> None:
    law = Law(floor=0.8, a=40.0, alpha=float(EXPONENTS[17]), b=200.0, beta=float(EXPONENTS[20]))
    found = fit_law(N, D, law(N, D))
    assert (found.alpha, found.beta) == (law.alpha, law.beta)
    assert (found.floor, found.a, found.b) == pytest.approx((law.floor, law.a, law.b), rel=1e-4)
    assert found(np.array([1e7]), np.array([1e8])) == pytest.approx(law(np.array([1e7]), np.array([1e8])), rel=1e-6)


def test_the_constants_equal_an_independent_solver_s() -> None:
    generator = np.random.default_rng(3)
    columns = generator.normal(0.3, 1.0, (50, 6, 3))
    constants, errors = _nonnegative(columns)
    for each, found, error in zip(columns, constants, errors, strict=True):
        expected, norm = nnls(each, np.ones(6))
        assert found == pytest.approx(expected, abs=1e-9)
        assert error == pytest.approx(norm**2)


def test_a_power_law_and_its_slope_are_found_again() -> None:
    compute, law = np.geomspace(1e10, 1e13, 6), PowerLaw(floor=0.5, k=100.0, gamma=float(EXPONENTS[10]))
    found = fit_power(compute, law(compute))
    assert (found.floor, found.k, found.gamma) == pytest.approx((law.floor, law.k, law.gamma), rel=1e-6)
    assert slope(compute, 3.0 * compute**-0.125) == pytest.approx(-0.125)


def test_the_frontier_is_what_nothing_cheaper_beats() -> None:
    assert frontier(np.array([4.0, 1.0, 2.0, 3.0]), np.array([1.0, 3.0, 2.0, 2.5])) == [1, 2, 0]


def test_an_interval_of_a_mean_covers_it_as_often_as_it_says() -> None:
    generator, inside = np.random.default_rng(1), 0
    for _ in range(60):
        values = generator.normal(1.0, 0.5, 30)
        (interval,) = bootstrap_runs(30, lambda rows, values=values: [float(values[rows].mean())])  # type: ignore[misc]
        inside += interval.low <= 1.0 <= interval.high
    assert 51 <= inside <= 60, "95 % of 60 are 57; 51 is three standard deviations below"
