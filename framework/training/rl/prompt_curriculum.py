"""The scenario curriculum: prompts of kinds that the policy fails at are answered more often."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

from framework.data.render.sample import Sample
from framework.objective.scenario_weights import ScenarioWeights


class ScenarioSampling:
    """Chooses among drawn prompts by the kind of their scene, and counts each kind's success.

    A kind is answered in the ratio of its weight to the largest: of what the stream holds of it, so much is used and
    the rest passed over, by `draw`, a number in [0, 1) that depends on the prompt and the step alone. Counts are of all
    ranks, so that all choose by the same weights.
    """

    def __init__(self, weights: ScenarioWeights | None, draw: Callable[[Sample, int], float]) -> None:
        self.weights, self.draw = weights, draw
        self.counts: dict[str, list[float]] = {}
        self._fresh: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])

    def chosen(self, prompts: Sequence[Sample], step: int) -> list[Sample]:
        """Those of `prompts` that are to be answered."""
        if self.weights is None:
            return list(prompts)
        ratios = self.ratios(prompt.scene.kind for prompt in prompts)
        return [prompt for prompt in prompts if self.draw(prompt, step) < ratios[prompt.scene.kind]]

    def ratios(self, kinds: Iterable[str] = ()) -> dict[str, float]:
        """Each kind's weight over the largest, of those counted so far and `kinds`."""
        assert self.weights is not None
        every = sorted({*self.counts, *kinds})
        if not every:
            return {}
        counts = torch.tensor([self.counts.get(kind, [0.0, 0.0]) for kind in every])
        shares = self.weights(counts[:, 0], counts[:, 1])
        return dict(zip(every, (shares / shares.max()).tolist(), strict=True))

    def count(self, kind: str, success: bool) -> None:
        """One answer to a scene of `kind`."""
        self._fresh[kind][0] += success
        self._fresh[kind][1] += 1

    def remember(self, gather: Callable[[Any], list[Any]]) -> None:
        """Add what all ranks counted since the last time (`gather` is collective); older counts fade."""
        if self.weights is None:
            return
        measured = gather({kind: list(pair) for kind, pair in self._fresh.items()})
        self._fresh.clear()
        for kind in sorted({*self.counts, *(kind for part in measured for kind in part)}):
            new = torch.tensor([part.get(kind, [0.0, 0.0]) for part in measured]).sum(dim=0)
            old = torch.tensor(self.counts.get(kind, [0.0, 0.0]))
            self.counts[kind] = self.weights.decay(old, new).tolist()

    def metrics(self) -> dict[str, float]:
        """How often each kind is answered beside the one that is answered most."""
        return {} if self.weights is None else {f"scenarios/{kind}": ratio for kind, ratio in self.ratios().items()}
