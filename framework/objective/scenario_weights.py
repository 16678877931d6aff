"""How often each kind of scenario is sampled, by how well the policy does on it: the curriculum within the stage."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor


@dataclass(frozen=True)
class ScenarioWeights:
    """Shares of `k` kinds of scenario from measured success, p = (successes + 1) / (trials + 2) of each: a kind that
    was never tried counts as one in two.

    `focus` hard: (1 - p)^power; uncertain: (p (1 - p))^power, which also leaves aside what never succeeds, and so never
    tells a group's answers apart. These are AlphaStar's weightings of opponents (Vinyals et al. 2019, doi
    10.1038/s41586-019-1724-z, "prioritized fictitious self-play"). Of all draws, the share `spread` goes to all kinds
    alike, so that none is forgotten. `memory` is how much of a count is left after each measurement: the policy that
    was measured long ago is not the one that is trained.
    """

    focus: Literal["hard", "uncertain"] = "hard"
    power: float = 1.0
    spread: float = 0.2
    memory: float = 0.95

    def __post_init__(self) -> None:
        if self.focus not in ("hard", "uncertain"):
            raise ValueError(f"scenarios.focus: {self.focus}; give hard or uncertain")
        if self.power < 0:
            raise ValueError(f"scenarios.power: {self.power}; give 0 (all kinds alike) or more")
        if not (0 <= self.spread <= 1 and 0 <= self.memory <= 1):
            raise ValueError(f"scenarios: spread {self.spread}, memory {self.memory}; both are shares in [0, 1]")

    def __call__(self, successes: Tensor, trials: Tensor) -> Tensor:
        """Shares `(k,)`, which add up to 1, of `successes` `(k,)` in [0, `trials`] (fractions may count as such)."""
        success, failure = (successes + 1) / (trials + 2), (trials - successes + 1) / (trials + 2)
        pull = failure if self.focus == "hard" else success * failure
        pull = (pull / pull.max()) ** self.power  # the largest is 1: no power makes all of them vanish
        return self.spread / len(pull) + (1 - self.spread) * pull / pull.sum()

    def remembered(self, counts: Tensor, measured: Tensor) -> Tensor:
        """`counts` `(k,)` of successes or trials after one more measurement `(k,)`."""
        return self.memory * counts + measured
