"""The figures of the fuzzers' last campaigns, as `tools.fuzz` writes and the page of attacks shows them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

RECORD = Path("tests", "campaign.json")
"""Where they are kept, relative to the repository."""


@dataclass(frozen=True, slots=True)
class Campaign:
    """What a fuzzer has found."""

    examples: int
    """Examples drawn in the last campaign, valid or not."""
    minutes: float
    """How long that took, with the start of the process."""
    open: int
    """Distinct failures that it found."""
    mended: int
    """Failures of earlier campaigns that are mended."""


def read_campaigns(root: Path) -> dict[str, Campaign]:
    """The record of a repository, by `file::test`; empty where there is none."""
    file = root / RECORD
    return {name: Campaign(**each) for name, each in json.loads(file.read_text()).items()} if file.exists() else {}
