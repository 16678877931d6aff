"""One Comet experiment per run, whoever adds to it: attempts, stages, evaluation jobs; online, or as archives."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from framework.tracking.comet import Comet, experiment_key


@pytest.fixture(autouse=True)
def _no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COMET_API_KEY", raising=False)


def archives(folder: Path) -> list[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """What each archive says of its experiment, and its messages, oldest first."""
    found = []
    for path in sorted((folder / "comet").glob("*.zip"), key=lambda path: path.stat().st_mtime_ns):
        with zipfile.ZipFile(path) as archive:
            messages = [json.loads(line) for line in archive.read("messages.json").splitlines()]
            found.append((json.loads(archive.read("experiment.json")), messages))
    return found


def metrics(messages: list[dict[str, Any]]) -> list[tuple[str, float, int]]:
    """Name, value and step."""
    logged = [message["payload"]["metric"] for message in messages if message["type"] == "metric_msg"]
    ours = [one for one in logged if one["metricName"] in ("loss", "attempt")]
    return [(one["metricName"], one["metricValue"], one["step"]) for one in ours]


@pytest.mark.slow
@pytest.mark.guarantee("One Comet experiment per run, over attempts, stages and evaluation jobs")
def test_archives_of_all_attempts_and_stages_begin_one_experiment_or_go_on_with_it(tmp_path: Path) -> None:
    for attempt, step in ((1, 0), (1, 10), (2, 10)):
        logger = Comet("driving").logger("demo", tmp_path, attempt)
        logger.log_metrics({"loss": 1.0}, step=step)
        logger.close()
    found = archives(tmp_path)
    assert len(found) == 3
    for about, _ in found:
        assert about["offline_id"] == experiment_key("demo", tmp_path)
        assert about["project_name"] == "driving"
        # "create" would be refused for the second of them, "get" for the first.
        assert about["resume_strategy"] == "get_or_create"
    assert [metrics(messages) for _, messages in found] == [[("loss", 1.0, step)] for step in (0, 10, 10)]


@pytest.mark.slow
def test_no_archive_overwrites_one_of_an_attempt_with_the_same_seed(tmp_path: Path) -> None:
    for attempt in (1, 2):
        random.seed(0)
        expected = random.Random(0).random()
        logger = Comet("driving").logger("demo", tmp_path, attempt)
        assert random.random() == expected, "nor are the run's random numbers used up"
        logger.close()
    assert len(archives(tmp_path)) == 2


def test_no_traceback_goes_to_a_third_party(tmp_path: Path) -> None:
    Comet("driving").logger("demo", tmp_path, 1).close()
    from comet_ml import error_tracking

    assert not error_tracking.enabled_in_config()
    assert not error_tracking.initialized()


@pytest.mark.slow
def test_importing_comet_draws_none_of_the_runs_random_numbers(tmp_path: Path) -> None:
    begin = "import random; from framework.tracking.comet import Comet; from pathlib import Path; random.seed(0); "
    draw = "Comet('driving').logger('demo', Path('runs'), 1).close(); print('drawn', random.random())"
    command = [sys.executable, "-c", begin + draw]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert f"drawn {random.Random(0).random()}" in done.stdout


def test_what_runs_is_told_with_its_commit_and_where_the_attempt_went_on(tmp_path: Path) -> None:
    logger = Comet("driving").logger("demo", tmp_path, 3)
    logger.describe({"data.micro_batch": 8, "init_from": None}, {"code": "abc123", "attempt": "3"}, step=250)
    logger.close()
    ((_, messages),) = archives(tmp_path)
    parameters = [message["payload"]["param"] for message in messages if message["type"] == "parameter_msg"]
    assert {("data.micro_batch", 8)} <= {(one["paramName"], one["paramValue"]) for one in parameters}
    told = [message["payload"] for message in messages if message["type"] == "log_other"]
    others = {one["key"]: one["value"] for one in told}
    assert others["code"] == "abc123"
    assert others["attempt 3 went on from step"] == 250
    assert metrics(messages) == [("attempt", 3, 250)]


def test_a_comet_that_cannot_be_reached_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asked = []
    monkeypatch.setenv("COMET_API_KEY", "k" * 25)
    import comet_ml

    start = comet_ml.start

    def unreachable(*arguments: Any, online: bool, **options: Any) -> Any:
        asked.append(online)
        if online:
            raise ConnectionError("no route to host")
        return start(*arguments, online=online, **options)

    monkeypatch.setattr(comet_ml, "start", unreachable)
    comet = Comet("driving")
    for _ in range(2):
        logger = comet.logger("demo", tmp_path, 1)
        logger.log_metrics({"loss": 2.0}, step=4)
        logger.close()
    assert asked == [True, False, False]
    assert caplog.text.count("Comet cannot be reached") == 1
    assert [metrics(messages) for _, messages in archives(tmp_path)] == [[("loss", 2.0, 4)]] * 2


@pytest.mark.parametrize("variable", ["RANK", "SLURM_PROCID"])
def test_one_process_of_a_job_has_the_experiment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(variable, "1")
    logger = Comet("driving").logger("demo", tmp_path, 1)
    logger.describe({"a": 1}, {}, step=0)
    logger.close()
    assert archives(tmp_path) == []


@pytest.mark.guarantee("One Comet experiment per run, over attempts, stages and evaluation jobs")
def test_attempts_share_an_experiment_and_runs_do_not(tmp_path: Path) -> None:
    key = experiment_key("demo", tmp_path)
    assert key == experiment_key("demo", tmp_path / "." / "x" / "..")
    assert key != experiment_key("other", tmp_path)
    assert key.isalnum()
    assert 32 <= len(key) <= 50
