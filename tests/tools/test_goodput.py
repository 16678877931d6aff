"""The table and the picture of what a run's hours went into."""

from __future__ import annotations

from pathlib import Path

import pytest

from framework.run.phases import Phase, PhaseLedger
from tools.goodput import main


def test_attempts_phases_costs_and_the_reason_are_printed_and_drawn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = (PhaseLedger(tmp_path, attempt, 0, 2) for attempt in (1, 2))
    first.begin(Phase.START, at=0.0)
    first.begin(Phase.PRODUCTIVE, 0, at=3600.0)
    first.begin(Phase.LOST, 8, at=7200.0, why="hang (node 0): silence")
    second.begin(Phase.START, at=9000.0)
    second.begin(Phase.PRODUCTIVE, 4, at=10800.0)
    second.begin(Phase.END, 12, at=18000.0)
    assert main([str(tmp_path), "--draw", str(tmp_path / "goodput.png")]) == 0
    heading, one, two, total, *_ = capsys.readouterr().out.splitlines()
    assert " ".join(heading.split()) == "attempt start productive lost replay steps replayed GPU h ended by"
    assert " ".join(one.split()) == "1 3600.0 s 3600.0 s 1800.0 s 8 0 5 hang (node 0): silence"
    assert " ".join(two.split()) == "2 1800.0 s 3600.0 s 3600.0 s 8 4 5"
    assert " ".join(total.split()) == "GPU h 3 4 1 2 16 4 10"
    assert (tmp_path / "goodput.png").read_bytes().startswith(b"\x89PNG")


def test_a_folder_that_is_no_run_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 1
    assert "give the folder of a run that has started" in capsys.readouterr().err
