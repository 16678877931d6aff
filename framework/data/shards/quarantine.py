"""Samples that cannot be used: counted, written down, and never too many."""

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
class Refused:
    """A sample that was drawn and could not be used, and why."""

    sample_id: str
    reason: str


class Quarantine:
    """Counts refused samples and appends each to `file` (JSON lines); the `budget` + 1st stops the run with a
    `SceneError`.
    """

    def __init__(self, budget: int = 100, file: Path | None = None) -> None:
        self.budget = budget
        self.file = file
        self.counts: Counter[str] = Counter()

    def __len__(self) -> int:
        return self.counts.total()

    def add(self, refused: Refused) -> None:
        """Count and write down one sample."""
        self.counts[refused.sample_id] += 1
        log.warning("sample refused (%d of %d): %s: %s", len(self), self.budget, refused.sample_id, refused.reason)
        if self.file is not None:
            append_line(self.file, json.dumps({"sample": refused.sample_id, "reason": refused.reason}))
        if len(self) > self.budget:
            raise SceneError(
                f"{len(self)} samples refused, data.quarantine_limit allows {self.budget}; the last was "
                f"{refused.sample_id}: "
                f"{refused.reason}. Repair the shards or raise the budget"
                + (f" (all in {self.file})" if self.file else "")
            )
