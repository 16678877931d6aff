"""Which groups of answers are worth a step: the test of dynamic sampling."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from framework.objective.groups import group_statistics


@dataclass(frozen=True)
class GroupFilter:
    """Keeps groups whose rewards differ: with a standard deviation above `floor`, and a mean within [`mean_low`,
    `mean_high`] where these are given.

    DAPO's dynamic sampling (Yu et al. 2025, arXiv 2503.14476, equation 11) for any reward. A bound on the mean alone
    lets groups without spread pass where rewards are continuous. Judge rewards *without* shaping parts: a length
    penalty would lend every group a spread.
    """

    floor: float = 1e-3
    mean_low: float | None = None
    mean_high: float | None = None

    def __post_init__(self) -> None:
        if self.floor < 0:
            raise ValueError(f"filter.floor: {self.floor}; a standard deviation is 0 or more")
        if self._least > self._most:
            raise ValueError(f"filter: mean_low {self.mean_low} is above mean_high {self.mean_high}; no group would do")

    @property
    def _least(self) -> float:
        return -math.inf if self.mean_low is None else self.mean_low

    @property
    def _most(self) -> float:
        return math.inf if self.mean_high is None else self.mean_high

    def __call__(self, rewards: Tensor, groups: Tensor) -> Tensor:
        """Whether each of `g` groups is kept, `(g,)` bool, of `rewards` `(n,)` and `groups` `(n,)` int64 in [0, g)."""
        statistics = group_statistics(rewards, groups)
        mean = statistics.mean
        return (statistics.std > self.floor) & (mean >= self._least) & (mean <= self._most)
