"""Scaling laws fitted to the losses of small runs. Pure functions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from framework.evaluation.intervals import Interval
from framework.scene.types import FloatArray

EXPONENTS = np.arange(0.05, 1.5, 0.025)
"""Exponents that are tried."""
RESAMPLES = 200
"""Draws of a bootstrap."""
FEWEST = 6
"""Runs below which no law of two variables is fitted: it has five constants."""


@dataclass(frozen=True, slots=True)
class TrainedRun:
    """What a run was given, and what its model does."""

    name: str
    """The run's name."""
    parameters: float
    """Parameters that each token passes."""
    tokens: float
    """Tokens that were trained."""
    compute: float
    """FLOPs of training."""
    figures: dict[str, float]
    """What was measured of the trained model, by metric."""


@dataclass(frozen=True, slots=True)
class Law:
    """L(N, D) = E + A / N^alpha + B / D^beta (Hoffmann et al. 2022, arXiv 2203.15556, section 3.3)."""

    floor: float
    """E: the loss that neither more parameters nor more data take away."""
    a: float
    """A."""
    alpha: float
    """The exponent of parameters."""
    b: float
    """B."""
    beta: float
    """The exponent of data."""

    def __call__(self, parameters: FloatArray, tokens: FloatArray) -> FloatArray:
        """The loss of models with `parameters` `(n,)` after `tokens` `(n,)`."""
        loss: FloatArray = self.floor + self.a * parameters**-self.alpha + self.b * tokens**-self.beta
        return loss


@dataclass(frozen=True, slots=True)
class PowerLaw:
    """L(C) = E + k C^-gamma."""

    floor: float
    """E."""
    k: float
    """k."""
    gamma: float
    """The exponent of compute."""

    def __call__(self, compute: FloatArray) -> FloatArray:
        """The loss after `compute` FLOPs `(n,)`."""
        loss: FloatArray = self.floor + self.k * compute**-self.gamma
        return loss


def fit_law(parameters: FloatArray, tokens: FloatArray, losses: FloatArray) -> Law:
    """The law with the least mean square of relative errors over runs with `parameters`, `tokens` and `losses`, all
    `(n,)`.

    With the two exponents given, the law is linear in its three constants, none of which is negative: the exponents are
    tried on a grid, and the rest is solved, so that no start decides what is found.
    """
    n, d = _scaled(parameters), _scaled(tokens)
    alphas, betas = (each.ravel() for each in np.meshgrid(EXPONENTS, EXPONENTS))
    columns = np.stack(
        [np.ones((len(alphas), len(losses))), n[None] ** -alphas[:, None], d[None] ** -betas[:, None]], axis=2
    )
    constants, errors = _nonnegative(columns / losses[None, :, None])
    best = int(errors.argmin())
    (floor, a, b), alpha, beta = constants[best].tolist(), float(alphas[best]), float(betas[best])
    return Law(floor, a * float(parameters.min()) ** alpha, alpha, b * float(tokens.min()) ** beta, beta)


def fit_power(compute: FloatArray, losses: FloatArray) -> PowerLaw:
    """The power law with the least mean square of relative errors over runs with `compute` and `losses`, `(n,)`."""
    columns = np.stack([np.ones((len(EXPONENTS), len(losses))), _scaled(compute)[None] ** -EXPONENTS[:, None]], axis=2)
    constants, errors = _nonnegative(columns / losses[None, :, None])
    best = int(errors.argmin())
    (floor, k), gamma = constants[best].tolist(), float(EXPONENTS[best])
    return PowerLaw(floor, k * float(compute.min()) ** gamma, gamma)


def slope(compute: FloatArray, values: FloatArray) -> float:
    """d ln value / d ln compute: the exponent of a power law without a floor, by least squares."""
    return float(np.polyfit(np.log(compute), np.log(values), 1)[0])


def frontier(compute: FloatArray, losses: FloatArray) -> list[int]:
    """The runs that no other beats with as much compute or less, by compute."""
    order = sorted(range(len(compute)), key=lambda row: (compute[row], losses[row]))
    best, rows = np.inf, []
    for row in order:
        if losses[row] < best:
            best = losses[row]
            rows.append(row)
    return rows


def bootstrap_runs(count: int, statistic: Callable[[list[int]], Sequence[float]]) -> list[Interval]:
    """The 95 % interval of each number of `statistic` over resampled runs, given by their places below `count` (Efron
    1979). Runs are resampled, not checkpoints: those of one run depend on each other. A draw with fewer than four
    different runs is drawn again.
    """
    generator, draws = np.random.default_rng(0), list[Sequence[float]]()
    while len(draws) < RESAMPLES:
        rows = generator.integers(0, count, count).tolist()
        if len(set(rows)) >= min(4, count):
            draws.append(statistic(rows))
    low, high = np.quantile(np.array(draws), [0.025, 0.975], axis=0)
    return [Interval(float(a), float(b)) for a, b in zip(low, high, strict=True)]


def _scaled(values: FloatArray) -> FloatArray:
    """Values relative to their least: the powers of raw ones differ by orders of magnitude, which costs digits."""
    scaled: FloatArray = values / values.min()
    return scaled


def _nonnegative(columns: FloatArray) -> tuple[FloatArray, FloatArray]:
    """The constants `(g, k)`, none negative, with the least square error `(g,)` of `columns` `(g, n, k)` against 1.

    The solution is that of the columns whose constants are positive, and there are few columns: all subsets are tried.
    """
    count = columns.shape[2]
    best, errors = np.zeros((len(columns), count)), np.full(len(columns), np.inf)
    for size in range(1, count + 1):
        for subset in combinations(range(count), size):
            chosen = columns[:, :, subset]
            squares = chosen.transpose(0, 2, 1) @ chosen
            constants = (np.linalg.pinv(squares, hermitian=True) @ chosen.sum(axis=1)[..., None])[..., 0]
            error = np.square((chosen @ constants[..., None])[..., 0] - 1.0).sum(axis=1)
            better = (constants >= 0).all(axis=1) & (error < errors)
            errors[better] = error[better]
            best[better] = 0.0
            best[np.ix_(better, list(subset))] = constants[better]
    return best, errors
