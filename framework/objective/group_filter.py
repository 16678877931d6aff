"""Dynamic sampling's test of which groups of answers are worth a step."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from framework.objective.groups import group_statistics
from framework.recipe.component import component
from framework.recipe.ranges import Deviation, Share


@component
@dataclass(frozen=True)
class GroupFilter:
    """Keeps groups whose rewards vary and in which some answers succeed and some do not; optionally, whose success rate
    lies within narrower bounds.

    Dynamic sampling of DAPO (Yu et al. 2025, arXiv 2503.14476, equation 11) for any reward: its accuracy is the success
    rate here. Continuous rewards vary in every group: their spread alone would discard none. Bounds on success alone
    would let groups without spread pass, and bounds on the mean reward mean nothing where rewards are sums of
    penalties. Filter on rewards *without* shaping terms: a length penalty would give every group a spread.
    """

    floor: Deviation = 1e-3
    """A group's standard deviation must be above this, in units of the reward."""
    success_low: Share | None = None
    """Lowest share of successful answers in a group that is kept, in [0, 1]. None: any above 0."""
    success_high: Share | None = None
    """Highest share of successful answers in a group that is kept, in [0, 1]. None: any below 1."""

    def __post_init__(self) -> None:
        if self.floor < 0:
            raise ValueError(f"filter.floor: {self.floor}; a standard deviation is 0 or more")
        if not 0 <= self._low <= self._high <= 1:
            raise ValueError(
                f"filter: success_low {self.success_low}, success_high {self.success_high}; give shares of a group's "
                "answers, 0 to 1, the lower first"
            )

    @property
    def _low(self) -> float:
        return 0.0 if self.success_low is None else self.success_low

    @property
    def _high(self) -> float:
        return 1.0 if self.success_high is None else self.success_high

    def __call__(self, rewards: Tensor, groups: Tensor, success: Tensor | None) -> Tensor:
        """Whether each of `g` groups is kept, `(g,)` bool.

        Args:
            rewards: Rewards of the answers, `(n,)`.
            groups: Group of each answer, `(n,)` int64 in [0, g).
            success: Whether each answer succeeds, `(n,)` of 0 and 1. None where success is undefined: the spread of the
                rewards decides alone.
        """
        keep = group_statistics(rewards, groups).std > self.floor
        if success is None:
            return keep
        share = group_statistics(success, groups).mean
        return keep & (share > 0) & (share < 1) & (share >= self._low) & (share <= self._high)
