"""A short soak: a random fault leaves no trace in what is trained."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_run_that_a_fault_struck_ends_as_one_that_was_left_alone(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tools.soak", "--folder", str(tmp_path), "--faults", "1", "--seed", "1"],
        cwd=REPOSITORY, capture_output=True, text=True, timeout=1700, check=False,
    )  # fmt: skip
    print(done.stdout)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    assert "bit-equal" in done.stdout
    assert "goodput: " in done.stdout
