"""The samples that cannot be used: counted, recorded, and limited to a share of those drawn."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from framework.recipe.component import component
from framework.recipe.ranges import PositiveCount, Share
from framework.run.files import append_line
from framework.scene.types import SceneError

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class QuarantinedSample:
    """A sample that was drawn and cannot be used."""

    sample_id: str
    """Stream, shard and place within the shard."""
    reason: str
    """What is wrong with it, and the remedy."""


@component
@dataclass(frozen=True)
class QuarantinePolicy:
    """How many of a rank's samples may be quarantined before the run stops.

    Raises:
        ValueError: `limit` is no share, or `min_samples` is less than 1.
    """

    limit: Share = 0.05
    """Largest share of the samples drawn in this attempt, from 0 to 1."""
    min_samples: PositiveCount = 200
    """Samples of which the share is taken while fewer are drawn, so that one bad sample at the start is not all."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.limit <= 1.0:
            raise ValueError(f"data.quarantine.limit: {self.limit}; give a share of the samples, from 0 to 1")
        if self.min_samples < 1:
            raise ValueError(f"data.quarantine.min_samples: {self.min_samples}; at least 1")

    def allows(self, quarantined: int, drawn: int) -> bool:
        """Returns whether `quarantined` samples of `drawn` are within the limit."""
        return quarantined <= self.limit * max(drawn, self.min_samples)


class Quarantine:
    """Counts quarantined samples and appends each to a file of JSON lines.

    Args:
        policy: How many are allowed; None takes the defaults.
        file: Where they are recorded; None records nothing.

    Attributes:
        counts: Times that each sample was quarantined, by its id.
        drawn: Samples drawn so far, the quarantined ones included.
    """

    def __init__(self, policy: QuarantinePolicy | None = None, file: Path | None = None) -> None:
        self.policy = policy or QuarantinePolicy()
        self.file = file
        self.counts: Counter[str] = Counter()
        self.drawn = 0

    def __len__(self) -> int:
        return self.counts.total()

    def count(self, drawn: int, quarantined: Sequence[QuarantinedSample]) -> None:
        """Counts a step's `drawn` samples, and records those `quarantined` among them. Raises `SceneError` when their
        share exceeds the limit.
        """
        self.drawn += drawn
        for sample in quarantined:
            self.counts[sample.sample_id] += 1
            log.warning("sample quarantined (%d so far): %s: %s", len(self), sample.sample_id, sample.reason)
            if self.file is not None:
                append_line(self.file, json.dumps({"sample": sample.sample_id, "reason": sample.reason}))
        if quarantined and not self.policy.allows(len(self), self.drawn):
            raise SceneError(
                f"{len(self)} of {self.drawn} samples quarantined, data.quarantine.limit allows a share of "
                f"{self.policy.limit:g}; the last was {quarantined[-1].sample_id}: {quarantined[-1].reason}. Repair "
                "the shards or raise the limit" + (f" (all are listed in {self.file})" if self.file else "")
            )
