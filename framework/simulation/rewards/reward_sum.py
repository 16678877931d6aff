"""The weighted sum of reward components, with every part kept and every failure counted."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from framework.simulation.rewards.rollouts import Reward, RolloutBatch

log = logging.getLogger(__name__)


class RewardError(RuntimeError):
    """More answers could not be judged than the budget allows."""


@dataclass(frozen=True, slots=True)
class Rewards:
    """What `n` answers are worth. `total` `(n,)` is the weighted sum, `unshaped` `(n,)` that without the shaping parts;
    `parts` are the components' own values `(n,)`, unweighted. `kept` `(n,)` bool: answers that every component judged;
    the others are 0 throughout and must be dropped.
    """

    total: Tensor
    unshaped: Tensor
    parts: dict[str, Tensor]
    kept: Tensor


class RewardSum:
    """sum over parts of weight x value.

    `components` and `weights` have the same names. `shaping` names parts that only shape a reward (a length penalty,
    say): dynamic sampling judges a group's spread without them. An answer that a component cannot judge (it raises, or
    gives NaN or infinity) is dropped, never worth 0 in silence: it is logged and counted, as whoever has nothing to
    show the components does by `count`; `settle` adds what all ranks counted to the run's `errors` by name, of which
    `error_budget` are allowed.
    """

    def __init__(
        self,
        components: Mapping[str, Reward],
        weights: Mapping[str, float],
        shaping: Collection[str] = (),
        error_budget: int = 100,
    ) -> None:
        unmatched = set(components) ^ set(weights) | (set(shaping) - set(components))
        if not components or unmatched:
            raise ValueError(
                f"rewards: components {sorted(components)}, weights {sorted(weights)}, shaping {sorted(shaping)}; give "
                "every component one weight, and shape with components alone"
            )
        self.components = dict(components)
        self.weights = dict(weights)
        self.shaping = frozenset(shaping)
        self.error_budget = error_budget
        self.errors: Counter[str] = Counter()
        self._fresh: Counter[str] = Counter()
        self._last: str | None = None

    def __call__(self, rollouts: RolloutBatch) -> Rewards:
        """Judge `rollouts`."""
        device = rollouts.episodes.ego.device
        kept = torch.ones(len(rollouts), dtype=torch.bool, device=device)
        parts = {}
        for name, component in self.components.items():
            parts[name], judged = self._judge(name, component, rollouts)
            kept &= judged
        parts = {name: torch.where(kept, values, torch.zeros_like(values)) for name, values in parts.items()}
        weighted = {name: self.weights[name] * values for name, values in parts.items()}
        nothing = torch.zeros(len(rollouts), device=device)
        unshaped = sum((values for name, values in weighted.items() if name not in self.shaping), start=nothing)
        shaped = sum((values for name, values in weighted.items() if name in self.shaping), start=nothing)
        return Rewards(unshaped + shaped, unshaped, parts, kept)

    def count(self, name: str, scene: str, error: Exception, answers: int = 1) -> None:
        """Note `answers` about `scene` that `name`, a component or what comes before them all, could not judge."""
        self._fresh[name] += answers
        self._last = f"{name} on scene {scene}: {error!r}"
        log.warning("reward %s: %d of the answers about scene %s dropped: %r", name, answers, scene, error)

    def settle(self, gather: Callable[[Any], list[Any]]) -> None:
        """Add what all ranks could not judge since the last time to `errors` (`gather` is collective). Raises
        `RewardError` on every rank where that is more than the budget.
        """
        told = gather((dict(self._fresh), self._last))
        self._fresh, self._last = Counter(), None
        for counted, _ in told:
            self.errors.update(counted)
        failed, reasons = self.errors.total(), [last for _, last in told if last is not None]
        if reasons and failed > self.error_budget:
            raise RewardError(
                f"rewards failed {failed} times, error_budget allows {self.error_budget} ({dict(self.errors)}); the "
                f"last was {reasons[-1]}. Repair the component or the scenes, or raise the budget"
            )

    def _judge(self, name: str, component: Reward, rollouts: RolloutBatch) -> tuple[Tensor, Tensor]:
        """A component's values `(n,)` and which answers it judged `(n,)`; one answer at a time where all at once
        fail."""
        judged = torch.ones(len(rollouts), dtype=torch.bool, device=rollouts.episodes.ego.device)
        try:
            return _values(component, rollouts), judged
        except Exception as error:
            log.warning("reward %s: %d answers at once: %r; now one by one", name, len(rollouts), error)
        values = torch.zeros(len(rollouts), device=judged.device)
        for row, scene in enumerate(rollouts.scenes):
            try:
                values[row] = _values(component, rollouts.take([row]))[0]
            except Exception as error:
                judged[row] = False
                self.count(name, scene.id, error)
        return values, judged


def _values(component: Reward, rollouts: RolloutBatch) -> Tensor:
    """A component's values `(n,)`, float32. Raises `ValueError` when there are not that many, or not all finite."""
    values = component(rollouts).to(torch.float32)
    if values.shape != (len(rollouts),):
        raise ValueError(f"gave values of shape {tuple(values.shape)} for {len(rollouts)} answers; give one each")
    if lost := int((~values.isfinite()).sum()):
        raise ValueError(f"gave NaN or infinity for {lost} of {len(rollouts)} answers")
    return values
