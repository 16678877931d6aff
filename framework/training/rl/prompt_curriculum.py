"""The prompt curriculum: scenes of kinds at which the policy fails are answered more often."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from framework.objective.scenario_weights import ScenarioWeights
from framework.scene.types import Scene
from framework.training.rl.rollout import Prompt


class PromptCurriculum:
    """Selects prompts by the kind of their scene, and counts the success of each kind.

    A kind is selected in the ratio of its weight to the largest weight: that share of its prompts in the stream is
    answered, the rest is skipped. Counts are summed over ranks, so that all ranks select by the same weights.

    Args:
        weights: Weights of kinds by their success; None selects every prompt.
        uniform: Gives a number in [0, 1) that depends on the prompt and the step alone, and decides by it.
    """

    def __init__(self, weights: ScenarioWeights | None, uniform: Callable[[Prompt, int], float]) -> None:
        self.weights, self.uniform = weights, uniform
        self.counts: dict[str, list[float]] = {}
        self._new_counts: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])

    def select(self, prompts: Sequence[Prompt], step: int) -> list[Prompt]:
        """Returns those of `prompts` that are answered."""
        if self.weights is None:
            return list(prompts)
        ratios = self.ratios(prompt.scene.kind for prompt in prompts)
        return [prompt for prompt in prompts if self.uniform(prompt, step) < ratios[prompt.scene.kind]]

    def ratios(self, kinds: Iterable[str] = ()) -> dict[str, float]:
        """Returns each kind's weight over the largest, of the kinds counted so far and `kinds`."""
        assert self.weights is not None
        every = sorted({*self.counts, *kinds})
        if not every:
            return {}
        counts = torch.tensor([self.counts.get(kind, [0.0, 0.0]) for kind in every])
        weights = self.weights(counts[:, 0], counts[:, 1])
        return dict(zip(every, (weights / weights.max()).tolist(), strict=True))

    def count(self, kind: str, success: bool) -> None:
        """Counts one answer to a scene of `kind`."""
        self._new_counts[kind][0] += success
        self._new_counts[kind][1] += 1

    def count_answers(self, scenes: Sequence[Scene], success: Tensor) -> None:
        """Counts an answer to each of `scenes`; `success` `(n,)` is NaN, and not counted, where a scene cannot tell."""
        for scene, value in zip(scenes, success.tolist(), strict=True):
            if not math.isnan(value):
                self.count(scene.kind, value == 1)

    def update(self, gather: Callable[[Any], list[Any]]) -> None:
        """Adds what all ranks counted since the last update (`gather` is collective); older counts decay."""
        if self.weights is None:
            return
        measured = gather({kind: list(pair) for kind, pair in self._new_counts.items()})
        self._new_counts.clear()
        for kind in sorted({*self.counts, *(kind for part in measured for kind in part)}):
            new = torch.tensor([part.get(kind, [0.0, 0.0]) for part in measured]).sum(dim=0)
            old = torch.tensor(self.counts.get(kind, [0.0, 0.0]))
            self.counts[kind] = self.weights.decay(old, new).tolist()

    def metrics(self) -> dict[str, float]:
        """Returns how often each kind is answered, relative to the kind that is answered most."""
        return {} if self.weights is None else {f"scenarios/{kind}": ratio for kind, ratio in self.ratios().items()}
