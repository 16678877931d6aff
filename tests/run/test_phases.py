"""The ledger of phases, and what it says that a run's hours went into."""

from __future__ import annotations

from pathlib import Path

import pytest

from framework.run.goodput import REPLAY, accounts, goodput
from framework.run.layout import phases_file
from framework.run.phases import Phase, PhaseLedger, intervals, last_attempt, phase_ledger, read_phases

HOUR = 3600.0


def written(folder: Path) -> None:
    """Two nodes of four workers: an attempt of ten steps that fails at step 8 after the checkpoint of step 5, and one
    that goes on from there.
    """
    for node in (0, 1):
        first, second = (PhaseLedger(folder, attempt, node, 4) for attempt in (1, 2))
        first.begin(Phase.QUEUE, at=0.0)
        first.begin(Phase.START, at=2 * HOUR)
        first.begin(Phase.PRODUCTIVE, 0, at=3 * HOUR)
        first.begin(Phase.CHECKPOINT, 5, at=8 * HOUR)
        first.begin(Phase.PRODUCTIVE, 5, at=9 * HOUR)
        first.begin(Phase.LOST, 8, at=12 * HOUR, why=f"hardware (node {node})")
        second.begin(Phase.START, at=13 * HOUR)
        second.begin(Phase.PRODUCTIVE, 5, at=14 * HOUR)
        second.begin(Phase.END, 10, at=19 * HOUR)


def test_hours_are_told_by_attempt_and_phase(tmp_path: Path) -> None:
    written(tmp_path)
    first, second = accounts(tmp_path, now=99 * HOUR)
    assert first.gpu_hours == {"queue": 0.0, "start": 8.0, "productive": 64.0, "checkpoint": 8.0, "lost": 8.0}
    assert first.seconds["queue"] == 2 * HOUR
    assert (first.first, first.last, first.replayed, first.why) == (0, 8, 0, "hardware (node 0)")
    assert second.gpu_hours == pytest.approx({"start": 8.0, "productive": 16.0, REPLAY: 24.0})
    assert (second.first, second.last, second.replayed, second.why) == (5, 10, 3, None)
    assert goodput([first, second]) == pytest.approx((64 + 16) / (88 + 48))


def test_a_phase_that_has_not_ended_lasts_until_now(tmp_path: Path) -> None:
    PhaseLedger(tmp_path, 1, 0, 2).begin(Phase.START, at=HOUR)
    (account,) = accounts(tmp_path, now=3 * HOUR)
    assert account.gpu_hours == {"start": 4.0}
    assert goodput([account]) == 0.0


def test_lines_are_ordered_by_time_as_a_hang_is_entered_late(tmp_path: Path) -> None:
    ledger = PhaseLedger(tmp_path, 1, 0, 1)
    ledger.begin(Phase.PRODUCTIVE, 1, at=10.0)
    ledger.begin(Phase.LOST, 3, at=30.0)
    ledger.begin(Phase.HANG, 3, at=20.0)
    found = intervals(read_phases(tmp_path)[0], now=40.0)
    assert [(span.line.phase, span.seconds) for span in found] == [("productive", 10), ("hang", 10), ("lost", 10)]


def test_a_line_that_a_crash_has_cut_is_passed_over(tmp_path: Path) -> None:
    written(tmp_path)
    with phases_file(tmp_path, 0).open("a") as file:
        file.write('{"time": 1.0, "att')
    assert last_attempt(tmp_path) == 2
    assert len(read_phases(tmp_path)[0]) == 9


def test_a_full_disk_ends_no_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    phases_file(tmp_path, 0).symlink_to("/dev/full")
    PhaseLedger(tmp_path, 1, 0, 1).begin(Phase.START)
    assert "No space left" in caplog.text


def test_one_worker_of_a_node_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"GROUP_RANK": "3", "LOCAL_WORLD_SIZE": "2", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    phase_ledger(tmp_path, 1).begin(Phase.INIT)
    assert read_phases(tmp_path) == {}
    monkeypatch.setenv("LOCAL_RANK", "0")
    phase_ledger(tmp_path, 1).begin(Phase.INIT)
    (line,) = read_phases(tmp_path)[3]
    assert (line.attempt, line.node, line.workers, line.phase) == (1, 3, 2, Phase.INIT)


def test_training_that_is_interrupted_goes_on(tmp_path: Path) -> None:
    with PhaseLedger(tmp_path, 1, 0, 1).during(Phase.CHECKPOINT, 7):
        pass
    assert [(line.phase, line.step) for line in read_phases(tmp_path)[0]] == [("checkpoint", 7), ("productive", 7)]
