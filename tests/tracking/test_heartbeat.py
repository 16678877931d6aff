"""One format, written and read."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from framework.recipe.heartbeat import Heartbeat, parse_heartbeat
from framework.tracking.comet import Comet, experiment_key
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
