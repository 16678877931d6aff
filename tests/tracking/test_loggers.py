"""Metrics over attempts."""

from __future__ import annotations

from pathlib import Path

from framework.tracking.metrics_file import MetricsFile, read_series


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


def test_metrics_survive_a_cut_at_every_byte(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    MetricsFile(path, 1, "broad").log_metrics({"loss": 3.125}, 1)
    one = len(path.read_bytes())
    MetricsFile(path, 1, "broad").log_metrics({"loss": 2.25}, 2)
    whole = path.read_bytes()
    for cut in range(len(whole) + 1):
        path.write_bytes(whole[:cut])
        saved = [(1, 3.125), (2, 2.25)][: (cut >= one) + (cut == len(whole))]
        assert read_series(path, "loss") == saved
        MetricsFile(path, 2, "broad").log_metrics({"loss": 1.5}, 3)
        assert read_series(path, "loss") == [*saved, (3, 1.5)]
        assert path.read_text().splitlines()[0] == "step,attempt,stage,name,value"
