"""One format, written and read."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from framework.tracking.heartbeat import Heartbeat, parse_heartbeat
from framework.tracking.metrics_file import MetricsFile, read_series


def test_a_heartbeat_survives_the_log() -> None:
    beat = Heartbeat("sft_drive", 2, "broad", 120, 1.25, 5310.5, 0.4123)
    assert parse_heartbeat(f"[rank 0] {beat}\n") == beat


def test_not_a_number_stays_visible() -> None:
    beat = parse_heartbeat(str(Heartbeat("r", 1, "broad", 1, math.nan, 0.0, 0.1)))
    assert beat is not None
    assert math.isnan(beat.loss)


@pytest.mark.parametrize(
    "line", ["", "step=3 loss=2", "heartbeat run=x attempt=one stage=a step=1 loss=1 tokens_per_s=1 step_s=1"]
)
def test_other_lines_are_no_heartbeats(line: str) -> None:
    assert parse_heartbeat(line) is None


def test_metrics_are_appended_over_attempts(tmp_path: Path) -> None:
    path = tmp_path / "run" / "metrics.csv"
    first = MetricsFile(path, 1, "broad")
    first.log_metrics({"loss": 3.0}, 1)
    first.log_metrics({"loss": 2.0}, 2)
    MetricsFile(path, 2, "broad").log_metrics({"loss": 2.5, "lr": 0.1}, 2)
    assert read_series(path, "loss") == [(1, 3.0), (2, 2.5)]
    assert read_series(path, "lr") == [(2, 0.1)]
    assert read_series(path, "accuracy") == []
    assert read_series(tmp_path / "none.csv", "loss") == []
