"""Metrics over attempts, and one experiment for them all."""

from __future__ import annotations

from pathlib import Path

import pytest

from framework.tracking.comet import Comet, experiment_key
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


def test_without_a_key_comet_writes_an_archive_per_attempt_of_one_experiment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COMET_API_KEY", raising=False)
    for attempt in (1, 2):
        logger = Comet("driving").logger("demo", tmp_path, attempt)
        logger.describe({"recipe": "demo"})
        logger.log_metrics({"loss": 1.0}, step=attempt)
        logger.close()
    archives = list((tmp_path / "comet").glob("*.zip"))
    assert len(archives) == 2
    assert all(archive.name.startswith(experiment_key("demo", tmp_path)) for archive in archives)


def test_attempts_share_an_experiment(tmp_path: Path) -> None:
    key = experiment_key("demo", tmp_path)
    assert key == experiment_key("demo", tmp_path)
    assert key != experiment_key("other", tmp_path)
    assert key.isalnum()
    assert 32 <= len(key) <= 50
