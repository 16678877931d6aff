"""Watches for steps whose loss or gradient norm is not finite, and averages the metrics of the others."""

from __future__ import annotations

import logging
import math
from collections import defaultdict
from collections.abc import Mapping

log = logging.getLogger(__name__)

WATCHED = ("loss", "gradient_norm")
"""Metrics that must be finite."""


class NonfiniteGuard:
    """Counts consecutive non-finite steps, and averages the metrics of the finite steps since the last checkpoint.

    After more than `bad_steps` consecutive non-finite steps the run is `lost`.

    Args:
        bad_steps: Consecutive non-finite steps that are tolerated.
    """

    def __init__(self, bad_steps: int) -> None:
        self._tolerated = bad_steps
        self._consecutive = 0
        self._metrics: dict[str, list[float]] = defaultdict(list)
        self._reason = ""

    @property
    def finite(self) -> bool:
        """Whether the loss and gradient norm of the last step that was read are finite."""
        return self._consecutive == 0

    @property
    def lost(self) -> bool:
        """Whether there were more consecutive non-finite steps than are tolerated."""
        return self._consecutive > self._tolerated

    @property
    def reason(self) -> str:
        """What was wrong with the last non-finite step, for messages: `not finite (loss nan), the 3. in a row`."""
        return self._reason

    def add(self, step: int, metrics: Mapping[str, float]) -> None:
        """Judge the metrics of `step`, which are the same on every rank."""
        nonfinite = [f"{name} {metrics[name]}" for name in WATCHED if not math.isfinite(metrics.get(name, 0.0))]
        if not nonfinite:
            self._consecutive = 0
            for name, value in metrics.items():
                self._metrics[name].append(value)
            return
        self._consecutive += 1
        self._reason = f"not finite ({', '.join(nonfinite)}), the {self._consecutive}. in a row"
        log.warning("step %d is %s: not saved", step, self._reason)

    def reset(self) -> None:
        """Forget all steps: the weights have changed, and earlier steps say nothing of the new ones."""
        self._consecutive = 0
        self._metrics.clear()

    def pop_means(self) -> dict[str, float]:
        """Means of the metrics over the finite steps since the last call."""
        means = {name: math.fsum(values) / len(values) for name, values in self._metrics.items()}
        self._metrics.clear()
        return means
