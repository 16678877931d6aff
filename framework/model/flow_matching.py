"""Flow matching between noise and actions (Lipman et al. 2023, arXiv 2210.02747), as pure functions of tensors.

Time runs as in pi0's code, SmolVLA and Flow-GRPO: 1 is noise, 0 the action. Between them lies a straight line,

    x_t = (1 - t) a + t e,        v = dx/dt = e - a,        e ~ N(0, 1)

and a network learns the mean of v at x_t. Alpamayo and the text of pi0 count the other way.
"""

from __future__ import annotations

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
