"""Dynamic sampling's test of which groups of answers are worth a step."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from framework.objective.groups import group_statistics
from framework.recipe.component import component
from framework.recipe.ranges import Deviation, PositiveCount, Share

LEAST_SPREAD = 1e-6
"""Standard deviation of a group's rewards below which its answers are worth the same, whatever the reward's span."""
Reason = Literal["unjudged", "overlong", "repeated", "all_succeed", "none_succeeds", "no_spread", "success_bounds"]
"""Why a group is not trained."""
REASONS: tuple[Reason, ...] = get_args(Reason)


@component
@dataclass(frozen=True)
class GroupFilter:
    """Keeps groups whose rewards vary and in which some answers succeed and some do not; optionally, whose success rate
    lies within narrower bounds.

    Optionally also drops groups of too few different answers, and groups of which too many were cut.

    Dynamic sampling of DAPO (Yu et al. 2025, arXiv 2503.14476, equation 11) for any reward: its accuracy is the success
    rate here. Continuous rewards vary in every group: their spread alone would discard none. Bounds on success alone
    would let groups without spread pass, and bounds on the mean reward mean nothing where rewards are sums of
    penalties. Filter on rewards *without* shaping terms: a length penalty would give every group a spread.
    """

    floor: Deviation = 1e-3
    """A group's standard deviation must be above this share of the reward's span, and above `LEAST_SPREAD`."""
    success_low: Share | None = None
    """Lowest share of successful answers in a group that is kept, in [0, 1]. None: any above 0."""
    success_high: Share | None = None
    """Highest share of successful answers in a group that is kept, in [0, 1]. None: any below 1."""
    max_cut_share: Share = 1.0
    """Largest share of answers that reached the length limit, in a group that is kept."""
    min_distinct: PositiveCount = 1
    """Fewest different answers in a group that is kept."""

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

    def reason(
        self, rewards: Tensor, success: Tensor | None, answers: Sequence[Hashable], cut: int, span: float = 1.0
    ) -> Reason | None:
        """Why a group is dropped, the first of `REASONS` that holds; None where it is kept.

        Args:
            rewards: Rewards of the group's answers, `(g,)`.
            success: Whether each answer succeeds, `(g,)` of 0 and 1. None where success is undefined: the spread of the
                rewards decides alone.
            answers: The answers, equal ones of which are repetitions.
            cut: How many answers reached the length limit.
            span: Distance between the worst and the best reward.
        """
        spread = group_statistics(rewards, torch.zeros(len(rewards), dtype=torch.int64)).std
        share = 0.5 if success is None else float(success.mean())
        holds: dict[Reason, bool] = {
            "unjudged": len(rewards) < 2,
            "overlong": cut > self.max_cut_share * len(answers),
            "repeated": len(set(answers)) < self.min_distinct,
            "all_succeed": share == 1,
            "none_succeeds": share == 0,
            "no_spread": not bool((spread > max(self.floor * span, LEAST_SPREAD)).all()),
            "success_bounds": success is not None and not self._low <= share <= self._high,
        }
        return next((name for name, true in holds.items() if true), None)
