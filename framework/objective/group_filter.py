"""Which groups of answers are worth a step: the test of dynamic sampling."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from framework.objective.groups import group_statistics


@dataclass(frozen=True)
class GroupFilter:
    """Keeps groups whose rewards differ: with a standard deviation above `floor`, and, where these are given, with a
    share of successful answers within [`success_low`, `success_high`].

    DAPO's dynamic sampling (Yu et al. 2025, arXiv 2503.14476, equation 11), whose accuracy is a success, for any
    reward. A bound on success alone lets groups without spread pass where rewards are continuous, and a bound on their
    mean means nothing where rewards are sums of penalties. Judge rewards *without* shaping parts: a length penalty
    would lend every group a spread.
    """

    floor: float = 1e-3
    success_low: float | None = None
    success_high: float | None = None

    def __post_init__(self) -> None:
        if self.floor < 0:
            raise ValueError(f"filter.floor: {self.floor}; a standard deviation is 0 or more")
        if not 0 <= self._least <= self._most <= 1:
            raise ValueError(
                f"filter: success_low {self.success_low}, success_high {self.success_high}; give shares of a group's "
                "answers, 0 to 1, the lower first"
            )

    @property
    def _least(self) -> float:
        return 0.0 if self.success_low is None else self.success_low

    @property
    def _most(self) -> float:
        return 1.0 if self.success_high is None else self.success_high

    def __call__(self, rewards: Tensor, groups: Tensor, success: Tensor | None) -> Tensor:
        """Whether each of `g` groups is kept, `(g,)` bool, of `rewards` `(n,)` and `groups` `(n,)` int64 in [0, g).

        `success` `(n,)`, 0 or 1, says which answers succeed; None where nobody can tell: the spread alone decides then.
        """
        kept = group_statistics(rewards, groups).std > self.floor
        if success is None:
            return kept
        share = group_statistics(success, groups).mean
        return kept & (share >= self._least) & (share <= self._most)
