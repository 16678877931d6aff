"""Hard-case mining by scene: which scenes are answered again, how long, and how often."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

from annotated_types import Interval

from framework.objective.scenario_weights import ScenarioWeights
from framework.recipe.component import component
from framework.recipe.ranges import PositiveCount, Share


class Measured(NamedTuple):
    """How the policy did in a scene."""

    prompt: Mapping[str, Any]
    """Where the prompt is read again, as JSON."""
    successes: float
    """Answers that succeeded."""
    answers: float
    """Answers that were judged, at least 1."""
    step: int
    """The step that measured it."""

    @property
    def success(self) -> float:
        """The share of answers that succeeded."""
        return self.successes / self.answers


@component
@dataclass(frozen=True, kw_only=True)
class SceneReplay:
    """Answers scenes again at which the policy did not always succeed, in place of a share of the stream's prompts
    (prioritised replay of levels: Jiang et al. 2021, arXiv 2010.03934).

    Scenes are kept by name with their last measured success. One is drawn in proportion to (1 - success)^power. It is
    dropped once its success leaves the bounds, once it has not been answered for `max_age` steps, and, where there are
    more than `size`, the one that was measured longest ago first.

    Raises `ValueError` for bounds in the wrong order.
    """

    share: Share = 0.25
    """Share of a step's prompts that are answered again, where there are any to answer."""
    low: Share = 0.0
    """Lowest success of a scene that is kept, in [0, 1]. Above 0, scenes at which every answer fails are left out."""
    high: Share = 0.75
    """Highest success of a scene that is kept, in [0, 1]."""
    size: PositiveCount = 1024
    """Most scenes that are kept."""
    max_age: PositiveCount = 100
    """Steps after which an old measurement says nothing of the present policy."""
    power: Annotated[float, Interval(ge=0, le=100)] = 1.0
    """Sharpness of the focus on failures; at 0 all scenes that are kept are drawn alike."""
    kinds: ScenarioWeights | None = None
    """Weights of kinds of scenario among the stream's prompts; None answers all of them."""

    def __post_init__(self) -> None:
        if not 0 <= self.low <= self.high <= 1 or self.size < 1 or self.max_age < 1:
            raise ValueError(
                f"prompt_weights: low {self.low}, high {self.high}, size {self.size}, max_age {self.max_age}; give "
                "shares of answers, the lower first, and a size and an age of at least 1"
            )

    def updated(self, kept: Mapping[str, Measured], new: Mapping[str, Measured], step: int) -> dict[str, Measured]:
        """Returns the scenes to keep after `step`, by name, of those `kept` and the `new` measurements."""
        merged = {**kept, **new}
        hard = {
            name: one
            for name, one in merged.items()
            if self.low <= one.success <= self.high and one.success < 1 and step - one.step < self.max_age
        }
        newest = sorted(hard, key=lambda name: (-hard[name].step, name))[: self.size]
        return {name: hard[name] for name in sorted(newest)}

    def choose(self, kept: Mapping[str, Measured], uniform: float) -> str:
        """Returns the name of one of the scenes `kept`, by a number in [0, 1)."""
        weights = {name: (1.0 - one.success) ** self.power for name, one in kept.items()}
        left = uniform * sum(weights.values())
        for name, weight in weights.items():
            left -= weight
            if left < 0:
                return name
        return next(reversed(weights))
