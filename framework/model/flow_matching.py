"""Flow matching between noise and actions (Lipman et al. 2023, arXiv 2210.02747), as pure functions of tensors.

Time runs as in pi0's code, SmolVLA and Flow-GRPO: 1 is noise, 0 the action. Between them lies a straight line,

    x_t = (1 - t) a + t e,        v = dx/dt = e - a,        e ~ N(0, 1)

and a network learns the mean of v at x_t. Alpamayo and the text of pi0 count the other way.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import Tensor

NOISY_END = 1.5
"""Training times have the density of Beta(1.5, 1), which weighs the noisy end (pi0: arXiv 2410.24164, appendix B)."""
SHORTEST_TIME = 1e-3
"""No time in training is shorter: at 0 the action itself would be shown."""


def interpolate(actions: Tensor, noise: Tensor, times: Tensor) -> Tensor:
    """x_t `(n, ...)` of `actions` and `noise` `(n, ...)` at `times` `(n,)`."""
    t = times.view(-1, *[1] * (actions.ndim - 1))
    return (1 - t) * actions + t * noise


def velocity(actions: Tensor, noise: Tensor) -> Tensor:
    """What the network learns: e - a."""
    return noise - actions


def training_times(uniform: Tensor) -> Tensor:
    """Times of training in (0, 1], by inverting the distribution function t^1.5 at numbers `uniform` in [0, 1)."""
    return SHORTEST_TIME + (1 - SHORTEST_TIME) * uniform ** (1 / NOISY_END)


def euler_step(x: Tensor, v: Tensor, step: float) -> Tensor:
    """x at time t - `step`, from x and the velocity at t."""
    return x - step * v


class Transition(NamedTuple):
    """The Gaussian that x at time t - step is drawn from."""

    mean: Tensor
    """Its mean."""
    deviation: float
    """Its standard deviation, the same in all dimensions."""


def stochastic_step(x: Tensor, v: Tensor, time: float, step: float, level: float) -> Transition:
    """The step from `time` to `time` - `step` of a stochastic flow with the marginals of the deterministic one
    (Flow-GRPO: Liu et al. 2025, arXiv 2505.05470, equation 9, on the grid of its code):

        s = level sqrt(t / (1 - t)),    mean = x - step (v + s^2 / (2 t) (x + (1 - t) v)),    deviation = s sqrt(step)

    where at t = 1 the next time stands in the denominator of s. With K steps the last one leaves a deviation of
    level / sqrt(K (K - 1)) on the action. Raises `ValueError` for a `level` that is not above 0, which leaves no
    density.
    """
    if not level > 0:
        raise ValueError(f"noise level {level}: a stochastic step needs one above 0")
    s = level * math.sqrt(time / (1 - (time if time < 1 else time - step)))
    drift = v + s * s / (2 * time) * (x + (1 - time) * v)
    return Transition(x - step * drift, s * math.sqrt(step))


def log_density(x: Tensor, transition: Transition) -> Tensor:
    """The logarithm of the density of `x` `(n, ...)` under a `Transition` to it, over all dimensions: `(n,)`.

    log p = -1/2 sum_i ((x_i - mean_i) / deviation)^2 - D (log deviation + 1/2 log 2 pi)
    """
    distance = ((x - transition.mean) / transition.deviation).flatten(1)
    return -distance.square().sum(dim=1) / 2 - distance.shape[1] * _log_norm(transition.deviation)


def entropy(dimensions: int, deviation: float) -> float:
    """The differential entropy of a Gaussian with equal `deviation` in all `dimensions`, in nats; may be negative."""
    return dimensions * (0.5 + _log_norm(deviation))


def _log_norm(deviation: float) -> float:
    return math.log(deviation) + math.log(2 * math.pi) / 2
