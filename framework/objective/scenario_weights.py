"""Sampling weights of scenario kinds by the policy's success on them: the curriculum within a stage."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Interval
from torch import Tensor

from framework.recipe.component import component
from framework.recipe.ranges import Share


@component
@dataclass(frozen=True)
class ScenarioWeights:
    """Shares of `k` scenario kinds from the measured success of each:

        p     = (successes + 1) / (trials + 2)
        hard:       q = (1 - p)^power
        uncertain:  q = (p (1 - p))^power
        share = spread / k + (1 - spread) q / sum of q over kinds

    A kind without trials counts as one success in two. The two weightings are AlphaStar's of opponents, "prioritized
    fictitious self-play" (Vinyals et al. 2019, doi 10.1038/s41586-019-1724-z).
    """

    focus: Literal["hard", "uncertain"] = "hard"
    """`hard`: kinds that seldom succeed are sampled more often. `uncertain`: kinds that sometimes succeed are; one that
    never does cannot tell a group's answers apart."""
    power: Annotated[float, Interval(ge=0, le=100)] = 1.0
    """Sharpness of the focus, at least 0; at 0 all kinds have equal shares."""
    spread: Share = 0.2
    """Share of all draws that is spread evenly over the kinds, in [0, 1], so that no kind is forgotten."""
    memory: Share = 0.95
    """Factor of the counts at each measurement, in [0, 1]: old results were those of another policy."""

    def __post_init__(self) -> None:
        if self.focus not in ("hard", "uncertain"):
            raise ValueError(f"scenarios.focus: {self.focus}; give hard or uncertain")
        if self.power < 0:
            raise ValueError(f"scenarios.power: {self.power}; give 0 (all kinds alike) or more")
        if not (0 <= self.spread <= 1 and 0 <= self.memory <= 1):
            raise ValueError(f"scenarios: spread {self.spread}, memory {self.memory}; both are shares in [0, 1]")

    def __call__(self, successes: Tensor, trials: Tensor) -> Tensor:
        """Shares `(k,)` that sum to 1, of `successes` `(k,)` in [0, `trials`]; successes may be fractional."""
        success, failure = (successes + 1) / (trials + 2), (trials - successes + 1) / (trials + 2)
        weight = failure if self.focus == "hard" else success * failure
        weight = (weight / weight.max()) ** self.power  # relative to the largest: no power underflows all of them
        return self.spread / len(weight) + (1 - self.spread) * weight / weight.sum()

    def decay(self, counts: Tensor, measured: Tensor) -> Tensor:
        """Counts `(k,)` of successes or trials after one more measurement `(k,)`."""
        return self.memory * counts + measured
