"""The samples that cannot be used: counted, recorded, and limited."""

from __future__ import annotations

import json
import logging
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

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


class Quarantine:
    """Counts quarantined samples and appends each to a file of JSON lines.

    Args:
        limit: Samples that may be quarantined before the run stops.
        file: Where they are recorded; None records nothing.
    """

    def __init__(self, limit: int = 100, file: Path | None = None) -> None:
        self.limit = limit
        self.file = file
        self.counts: Counter[str] = Counter()

    def __len__(self) -> int:
        return self.counts.total()

    def add(self, sample: QuarantinedSample) -> None:
        """Counts and records `sample`. Raises `SceneError` when the count exceeds the limit."""
        self.counts[sample.sample_id] += 1
        log.warning("sample quarantined (%d of %d): %s: %s", len(self), self.limit, sample.sample_id, sample.reason)
        if self.file is not None:
            append_line(self.file, json.dumps({"sample": sample.sample_id, "reason": sample.reason}))
        if len(self) > self.limit:
            raise SceneError(
                f"{len(self)} samples quarantined, data.quarantine_limit allows {self.limit}; the last was "
                f"{sample.sample_id}: {sample.reason}. Repair the shards or raise the limit"
                + (f" (all are listed in {self.file})" if self.file else "")
            )
