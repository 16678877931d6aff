"""A plugin of pytest that prints how far each comparison with a format's own library is off, for `docs/data.md`.

    python -m pytest -q -p tests.data.sources.differences tests/data/sources/test_argoverse_av2.py

A line has the largest difference of all runs of one `assert_allclose`, its tolerance, and the statement.
"""

from __future__ import annotations

import linecache
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

Place = tuple[str, int]
"""A file and a line."""
LARGEST: dict[Place, tuple[float, float]] = {}
"""The largest difference at each place, and the tolerance."""
_assert_allclose = np.testing.assert_allclose


def _compare(actual: Any, desired: Any, rtol: float = 1e-7, atol: float = 0.0, **options: Any) -> None:
    _assert_allclose(actual, desired, rtol, atol, **options)
    off = np.abs(np.asarray(actual, dtype=np.float64) - np.asarray(desired, dtype=np.float64))
    caller = sys._getframe(1)
    place = caller.f_code.co_filename, caller.f_lineno
    known, _ = LARGEST.get(place, (0.0, atol))
    LARGEST[place] = float(np.max(off, initial=known, where=np.isfinite(off))), atol


def pytest_configure() -> None:
    """Measures from here on."""
    np.testing.assert_allclose = _compare


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Prints what was measured."""
    terminalreporter.section("largest differences")
    for (file, line), (off, tolerance) in sorted(LARGEST.items()):
        statement = " ".join(linecache.getline(file, line).split())
        terminalreporter.write_line(f"{off:.1e} of {tolerance:.0e}  {Path(file).name}:{line}: {statement}")
