"""Lines that CloudWatch's agent understands: the embedded metric format."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path

import pytest

from framework.tracking.cloudwatch import METRICS_PER_LINE, CloudWatch
from framework.tracking.tracking import Tracking


def test_a_line_names_its_metrics_and_holds_their_values(tmp_path: Path) -> None:
    logger = Tracking(cloudwatch=CloudWatch("cars")).loggers("demo", tmp_path, 2, "broad")[-1]
    logger.log_metrics({"loss": 1.5, "step_s": 0.25, "ratio": math.nan}, 7)
    (line,) = (tmp_path / "cloudwatch.jsonl").read_text().splitlines()
    found = json.loads(line)
    about = found.pop("_aws")
    assert found == {"run": "demo", "attempt": 2, "step": 7, "loss": 1.5, "step_s": 0.25}
    assert about["CloudWatchMetrics"] == [
        {"Namespace": "cars", "Dimensions": [["run"]], "Metrics": [{"Name": "loss"}, {"Name": "step_s"}]}
    ]
    assert about["Timestamp"] / 1000 == pytest.approx(time.time(), abs=60)


def test_no_line_holds_more_than_the_format_allows(tmp_path: Path) -> None:
    metrics = {f"metric_{number}": float(number) for number in range(2 * METRICS_PER_LINE + 1)}
    CloudWatch().logger("demo", tmp_path, 1).log_metrics(metrics, 1)
    lines = [json.loads(line) for line in (tmp_path / "cloudwatch.jsonl").read_text().splitlines()]
    named = [metric["Name"] for line in lines for metric in line["_aws"]["CloudWatchMetrics"][0]["Metrics"]]
    assert named == list(metrics)
    assert max(len(line["_aws"]["CloudWatchMetrics"][0]["Metrics"]) for line in lines) == METRICS_PER_LINE
