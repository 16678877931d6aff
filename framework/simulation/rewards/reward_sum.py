"""The weighted sum of reward components. Every part is reported, every failure counted."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any

import torch
from annotated_types import Interval
from torch import Tensor

from framework.recipe.component import component
from framework.recipe.ranges import Count
from framework.simulation.rewards.rollouts import Reward, RolloutBatch, span_of

log = logging.getLogger(__name__)

LARGEST_VALUE = 1e9
"""The largest magnitude of a component's value: times the largest weight, sums of these stay finite."""


class RewardError(RuntimeError):
    """Reward components failed on more answers than the budget allows."""


@dataclass(frozen=True, slots=True)
class Rewards:
    """The rewards of `n` answers."""

    total: Tensor
    """`(n,)`: the weighted sum of all components."""
    unshaped: Tensor
    """`(n,)`: the weighted sum without the shaping components."""
    parts: dict[str, Tensor]
    """{component: values `(n,)`}, unweighted."""
    valid: Tensor
    """`(n,)` bool: the answers that every component judged. The others are 0 throughout and must be dropped."""


@component
class RewardSum:
    """The sum over components of weight x value.

    An answer on which a component fails (it raises, or returns NaN or infinity) is dropped; it is never silently worth
    0. The failure is logged and counted. Callers report answers that never reach the components by `count`. `settle`
    adds the failures of all ranks to `errors`.

    Args:
        components: {name: component}.
        weights: {name: weight}, for the same names.
        shaping: the components that only shape the reward, such as a length penalty: dynamic sampling computes the
            spread of a group without them.
        error_budget: the failures allowed over the run and all ranks.
    """

    def __init__(
        self,
        components: Mapping[str, Reward],
        weights: Mapping[str, Annotated[float, Interval(ge=-1e6, le=1e6)]],
        shaping: Collection[str] = (),
        error_budget: Count = 100,
    ) -> None:
        unmatched = set(components) ^ set(weights) | (set(shaping) - set(components))
        if not components or unmatched:
            raise ValueError(
                f"rewards: components {sorted(components)}, weights {sorted(weights)}, shaping {sorted(shaping)}; give "
                "every component one weight, and name only components in shaping"
            )
        wrong = {name: weight for name, weight in weights.items() if not 0 <= weight < float("inf")}
        if wrong:
            raise ValueError(
                f"rewards: weights {wrong}; give 0 or more, since higher is better for every component: a negative "
                "weight would reward the worst answers"
            )
        self.components = dict(components)
        self.weights = dict(weights)
        self.shaping = frozenset(shaping)
        self.error_budget = error_budget
        self.spans = {name: span_of(component) for name, component in components.items()}
        """{component: distance between its worst and its best value}, unweighted."""
        wrong = {name: span for name, span in self.spans.items() if not 0 < span < float("inf")}
        if wrong:
            raise ValueError(f"rewards: components declare the spans {wrong}; give the distance from worst to best")
        self.errors: Counter[str] = Counter()
        self._fresh: Counter[str] = Counter()
        self._last: str | None = None

    def __call__(self, rollouts: RolloutBatch) -> Rewards:
        """The rewards of `rollouts`."""
        device = rollouts.episodes.ego.device
        valid = torch.ones(len(rollouts), dtype=torch.bool, device=device)
        parts = {}
        for name, reward in self.components.items():
            parts[name], judged = self._judge(name, reward, rollouts)
            valid &= judged
        parts = {name: torch.where(valid, values, torch.zeros_like(values)) for name, values in parts.items()}
        weighted = {name: self.weights[name] * values for name, values in parts.items()}
        nothing = torch.zeros(len(rollouts), device=device)
        unshaped = sum((values for name, values in weighted.items() if name not in self.shaping), start=nothing)
        shaped = sum((values for name, values in weighted.items() if name in self.shaping), start=nothing)
        return Rewards(unshaped + shaped, unshaped, parts, valid)

    @property
    def span(self) -> float:
        """Distance between the worst and the best reward, without the components that only shape it; 1 for none."""
        judging = [name for name in self.components if name not in self.shaping]
        return sum(self.weights[name] * self.spans[name] for name in judging) or 1.0

    def worst(self, rollouts: RolloutBatch) -> Tensor:
        """The least rewards `(n,)`: those of the same answers had they not parsed; -1 for a component that cannot judge
        them even so, and 0 for one that shapes. Failures are not counted."""
        unparsed = replace(rollouts, plans=(None,) * len(rollouts))
        total = torch.zeros(len(rollouts), device=rollouts.episodes.ego.device)
        judging = [name for name in self.components if name not in self.shaping]  # sums depend on the order
        for row in range(len(rollouts)):
            for name in judging:
                try:
                    value = float(_values(self.components[name], unparsed.take([row]))[0])
                except Exception as error:
                    log.debug("reward %s: fails without a plan too: %r", name, error)
                    value = -1.0
                total[row] += self.weights[name] * value
        return total

    def count(self, name: str, scene: str, error: Exception, answers: int = 1) -> None:
        """Count `answers` about `scene` on which `name`, a component or a step before them, failed."""
        self._fresh[name] += answers
        self._last = f"{name} on scene {scene}: {error!r}"
        log.warning("reward %s: %d of the answers about scene %s dropped: %r", name, answers, scene, error)

    def settle(self, gather: Callable[[Any], list[Any]]) -> None:
        """Add the failures of all ranks since the last call to `errors`; `gather` is collective.

        Raises `RewardError` on every rank once `errors` exceed the budget.
        """
        reports = gather((dict(self._fresh), self._last))
        self._fresh, self._last = Counter(), None
        for counted, _ in reports:
            self.errors.update(counted)
        failed, reasons = self.errors.total(), [last for _, last in reports if last is not None]
        if reasons and failed > self.error_budget:
            raise RewardError(
                f"rewards failed {failed} times, error_budget allows {self.error_budget} ({dict(self.errors)}); the "
                f"last was {reasons[-1]}. Fix the component or the scenes, or raise the budget"
            )

    def _judge(self, name: str, reward: Reward, rollouts: RolloutBatch) -> tuple[Tensor, Tensor]:
        """A component's values `(n,)` and the mask `(n,)` of the answers it judged; one answer at a time once the whole
        batch fails."""
        judged = torch.ones(len(rollouts), dtype=torch.bool, device=rollouts.episodes.ego.device)
        try:
            return _values(reward, rollouts), judged
        except Exception as error:
            log.warning(
                "reward %s failed on a batch of %d answers: %r; retrying one by one", name, len(rollouts), error
            )
        values = torch.zeros(len(rollouts), device=judged.device)
        for row, scene in enumerate(rollouts.scenes):
            try:
                values[row] = _values(reward, rollouts.take([row]))[0]
            except Exception as error:
                judged[row] = False
                self.count(name, scene.id, error)
        return values, judged


def _values(reward: Reward, rollouts: RolloutBatch) -> Tensor:
    """A component's values `(n,)`, float32. Raises `ValueError` on another shape, and on values that are not finite or
    beyond `LARGEST_VALUE`.
    """
    values = reward(rollouts).to(torch.float32)
    if values.shape != (len(rollouts),):
        raise ValueError(f"gave values of shape {tuple(values.shape)} for {len(rollouts)} answers; give one each")
    if not_finite := int((~values.isfinite()).sum()):
        raise ValueError(f"gave NaN or infinity for {not_finite} of {len(rollouts)} answers")
    if absurd := int((values.abs() > LARGEST_VALUE).sum()):
        raise ValueError(f"gave values beyond {LARGEST_VALUE:g} for {absurd} of {len(rollouts)} answers")
    return values
