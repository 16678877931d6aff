"""The report of a conversion: report.json and report.html next to the index."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np

from framework.data.shards.summary import WIDTHS, Summary
from framework.evaluation.conversion_page import write_conversion
from framework.run.files import write_json
from tools.shards import scenes

PICTURED = 6
"""Records that are shown, evenly from the first to the last."""


def write_report(folder: Path, summary: Summary, records_per_s: float | None) -> Path:
    """Writes the report of the shards in `folder`. Returns the page's path.

    `records_per_s`: the speed of writing; None where an earlier run wrote a part of them.
    """
    facts = asdict(summary) | {"records_per_s": records_per_s, "widths": WIDTHS}
    numbers = np.unique(np.linspace(0, summary.records - 1, PICTURED).round().astype(int)).tolist()
    write_json(folder / "report.json", facts, durable=False)
    page = folder / "report.html"
    write_conversion(page, f"Shards of {folder.name}", facts, list(scenes(folder, numbers)))
    return page
