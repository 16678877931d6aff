"""What the coordinator of a job dropped because it does not belong to the run: counts by reason, in `dropped.json`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from framework.run.files import read_json
from framework.run.layout import DROPPED_FILE


def read_drop_counts(folder: Path) -> dict[str, int]:
    """The counts of the run in `folder` by reason; none where there is no file, or none that can be read."""
    try:
        counts = read_json(folder / DROPPED_FILE)
    except (OSError, ValueError, RecursionError):
        return {}
    entries = counts.items() if isinstance(counts, dict) else ()
    return {reason: count for reason, count in entries if type(count) is int and count > 0}


def describe_drops(counts: Mapping[str, int]) -> str:
    """The counts as text: `foreign 12, late 1`."""
    return ", ".join(f"{reason} {count}" for reason, count in sorted(counts.items()))
