"""A real Prometheus scrapes a real training, and evaluates the alert rules over it."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from framework.launch.host import free_port
from framework.run.heartbeat import parse_heartbeat
from framework.tracking.alerts import ALERTS
from tests.worlds import worlds
from tools.dashboards import main as write_rules

REPOSITORY = Path(__file__).resolve().parents[2]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(shutil.which("prometheus") is None, reason="prometheus is not installed (Debian: prometheus)"),
]


@contextmanager
def prometheus(folder: Path, target: int) -> Iterator[str]:
    """The address of a Prometheus that scrapes port `target` every second and knows the alert rules."""
    write_rules(["--out", str(folder)])
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(folder / "rules.yaml")],
        "scrape_configs": [{"job_name": "framework", "static_configs": [{"targets": [f"127.0.0.1:{target}"]}]}],
    }
    (folder / "prometheus.yaml").write_text(yaml.safe_dump(config))
    address = f"127.0.0.1:{free_port()}"
    command = ["prometheus", f"--config.file={folder / 'prometheus.yaml'}", f"--storage.tsdb.path={folder / 'series'}"]
    with (folder / "prometheus.log").open("w") as output:
        process = subprocess.Popen([*command, f"--web.listen-address={address}"], stderr=output)
    try:
        yield f"http://{address}/api/v1"
    finally:
        process.terminate()
        process.wait(timeout=30)


def ask(address: str, path: str, **parameters: str) -> Any:
    with urllib.request.urlopen(f"{address}/{path}?{urllib.parse.urlencode(parameters)}", timeout=30) as answer:
        return json.load(answer)["data"]


@pytest.mark.guarantee("A run's metrics reach a real Prometheus")
def test_prometheus_knows_the_step_of_a_run(tmp_path: Path) -> None:
    port = free_port()
    command = [
        sys.executable, "-m", "framework", "recipe=demo", "scale=tiny", f"paths.runs={tmp_path}/runs",
        f"paths.cache={worlds()}", "sources.world_train.scenes=48", "sources.world_hard.scenes=32",
        "sources.world_held_out.scenes=6", "sources.world_zero_shot.scenes=6",
        "tracking/prometheus=node", f"tracking.prometheus.port={port}", "tracking.prometheus.address=127.0.0.1",
        "evals.held_out.tasks={drive: 64}", "evals.held_out.before_training=false", "~evals.zero_shot",
        "~evals.closed_loop", "~curriculum.stages.rl",
    ]  # fmt: skip
    with prometheus(tmp_path, port) as address:
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=400, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        beats = [beat for line in done.stdout.splitlines() if (beat := parse_heartbeat(line)) is not None]
        # Between the stages there is an evaluation, much longer than a scrape's second.
        (found,) = ask(address, "query", query="max_over_time(framework_step[30m])")["result"]
        assert float(found["value"][1]) in {beat.step for beat in beats if beat.step >= 10}
        assert (found["metric"]["run"], found["metric"]["attempt"]) == ("demo-tiny", "1")
        assert found["metric"]["node"] == socket.gethostname()
        (loss,) = ask(address, "query", query="last_over_time(framework_loss[30m])")["result"]
        assert min(abs(float(loss["value"][1]) - beat.loss) for beat in beats) < 1e-4
        (age,) = ask(address, "query", query="last_over_time(framework_checkpoint_timestamp_seconds[30m])")["result"]
        assert 0 <= time.time() - float(age["value"][1]) < 400
        rules = ask(address, "rules")["groups"][0]["rules"]
        assert {rule["name"] for rule in rules} == {alert.name for alert in ALERTS}
        assert {rule["health"] for rule in rules} == {"ok"}, rules
        assert [alert for alert in ask(address, "alerts")["alerts"] if alert["state"] == "firing"] == []
