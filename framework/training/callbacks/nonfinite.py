"""Whether the steps of a run are numbers, and what its checkpoints say of them."""

from __future__ import annotations

import logging
import math
from collections import defaultdict
from collections.abc import Mapping

log = logging.getLogger(__name__)


class Health:
    """The metrics of the steps since the last checkpoint, and whether they are numbers. More than `bad_steps` in a row
    that are not are more than is to be borne: the run is `lost` as it is.
    """

    def __init__(self, bad_steps: int) -> None:
        self._allowed = bad_steps
        self._bad = 0
        self._seen: dict[str, list[float]] = defaultdict(list)
        self._why = ""

    @property
    def good(self) -> bool:
        """Whether the last step's loss and gradient norm are finite."""
        return self._bad == 0

    @property
    def lost(self) -> bool:
        """Whether one bad step too many came in a row."""
        return self._bad > self._allowed

    def __str__(self) -> str:
        return self._why

    def add(self, step: int, metrics: Mapping[str, float]) -> None:
        """Look at the metrics of `step`, which are the same on every rank."""
        watched = {name: metrics[name] for name in ("loss", "gradient_norm") if name in metrics}
        bad = [f"{name} {value}" for name, value in watched.items() if not math.isfinite(value)]
        if not bad:
            self._bad = 0
            for name, value in metrics.items():
                self._seen[name].append(value)
            return
        self._bad += 1
        self._why = f"not finite ({', '.join(bad)}), the {self._bad}. in a row"
        log.warning("step %d is %s: not saved", step, self._why)

    def begin_again(self) -> None:
        """The weights are others: what was seen of those before says nothing of them."""
        self._bad = 0
        self._seen.clear()

    def means(self) -> dict[str, float]:
        """Means since this was last asked."""
        means = {name: math.fsum(values) / len(values) for name, values in self._seen.items()}
        self._seen.clear()
        return means
