"""Dashboard and alert rules are what Grafana and Prometheus take, and the alerts ring when they should."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from framework.tracking.alerts import ALERTS, Alert
from framework.tracking.metric_table import METRICS
from tools.dashboards import dashboard, main

PROMTOOL = pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed (Debian: prometheus)")
WHOSE = '{run="demo", attempt="1", node="n1"}'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    assert main(["--out", str(tmp_path)]) == 0
    return tmp_path


def promtool(*words: str) -> str:
    done = subprocess.run(["promtool", *words], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.guarantee("Dashboards and alerts refer only to metrics that exist")
def test_an_alert_on_a_metric_that_does_not_exist_cannot_be_written() -> None:
    with pytest.raises(KeyError, match="heart"):
        Alert("Wrong", "time() - $heart > 5", "1m", "page", "").expression()


def test_names_follow_prometheus_conventions() -> None:
    names = [metric.name for metric in METRICS.values()]
    assert len(set(names)) == len(names)
    for metric in METRICS.values():
        assert re.fullmatch(r"framework_[a-z0-9_]+", metric.name)
        assert metric.name.endswith("_total") == (metric.kind == "counter")


@pytest.mark.guarantee("Dashboards and alerts refer only to metrics that exist")
def test_the_dashboard_shows_every_metric_once_and_no_other(folder: Path) -> None:
    written = json.loads((folder / "dashboard.json").read_text())
    assert written == dashboard()
    panels = [panel for panel in written["panels"] if panel["type"] == "timeseries"]
    shown = [re.findall(r"framework_\w+", panel["targets"][0]["expr"]) for panel in panels]
    assert sorted(name for names in shown for name in names) == sorted(metric.name for metric in METRICS.values())
    ids = [panel["id"] for panel in written["panels"]]
    assert len(set(ids)) == len(ids)


def test_no_two_panels_overlap(folder: Path) -> None:
    cells = [
        (place["x"] + column, place["y"] + row)
        for place in (panel["gridPos"] for panel in dashboard()["panels"])
        for column in range(place["w"])
        for row in range(place["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert max(column for column, _ in cells) == 23


@PROMTOOL
def test_prometheus_takes_the_rules_and_every_query_of_the_dashboard(folder: Path) -> None:
    assert f"{len(ALERTS)} rules found" in promtool("check", "rules", str(folder / "rules.yaml"))
    queries = [panel["targets"][0]["expr"] for panel in dashboard()["panels"] if panel["type"] == "timeseries"]
    records = [
        {"record": f"panel:{number}", "expr": query.replace("$__rate_interval", "5m")}
        for number, query in enumerate(queries)
    ]
    (folder / "panels.yaml").write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": records}]}))
    assert f"{len(METRICS)} rules found" in promtool("check", "rules", str(folder / "panels.yaml"))


def series(key: str, values: str, labels: str = "") -> dict[str, str]:
    return {"series": METRICS[key].name + WHOSE.replace("}", f"{labels}}}"), "values": values}


TRAINS = series("training", "1x60")
RINGS: dict[str, tuple[str, list[dict[str, str]]]] = {
    # Which alert rings after an hour of series with a value a minute (promtool's "start+stepxcount", "_" for none).
    "a healthy run": (
        "",
        [TRAINS, series("heartbeat", "0+60x60"), series("step_seconds", "10x60"), series("loss", "3-0.01x60"),
         series("checkpoint", "0+60x60"), series("wait_seconds", "0.1x60"),
         series("gpu_utilisation", "0.95x60", ', gpu="0"'), series("efa_resent", "0+60x60", ', device="e", port="1"')],
    ),
    "no step ends": ("Hang", [TRAINS, series("heartbeat", "0+60x5 300x55"), series("step_seconds", "10x60")]),
    "the first step never ends": ("Hang", [TRAINS, series("heartbeat", "0x60")]),
    "an evaluation": ("", [series("training", "1x5 0x55"), series("heartbeat", "0+60x5 300x55")]),
    "a node is lost": ("NodeSilent", [series("training", "1x50 _x10"), series("heartbeat", "0+60x50 _x10")]),
    "a run that is over": ("", [series("training", "1x40 0x9 _x11")]),
    "NaN": ("LossNotFinite", [series("loss", "3x59 NaN")]),
    "infinite": ("LossNotFinite", [series("loss", "3x59 Inf")]),
    "slow": ("SlowSteps", [series("step_seconds", "10x35 30x25")]),
    "starved": ("WaitsForData", [series("step_seconds", "10x60"), series("wait_seconds", "4x60")]),
    "idle": ("UtilisationDropped", [TRAINS, series("gpu_utilisation", "0.95x30 0.1x30", ', gpu="0"')]),
    "idle in an evaluation": ("", [series("training", "0x60"), series("gpu_utilisation", "0.1x60", ', gpu="0"')]),
    "an XID error": ("Xid", [series("gpu_xid", "_x40 1x20", ', gpu="3", xid="79"')]),
    "EFA sends again": ("EfaResends", [series("efa_resent", "0+60000x60", ', device="e", port="1"')]),
}  # fmt: skip


@PROMTOOL
@pytest.mark.parametrize("happens", RINGS)
def test_alerts_ring_when_they_should_and_only_then(folder: Path, happens: str) -> None:
    rings, given = RINGS[happens]
    checks = [
        {
            "eval_time": "60m",
            "alertname": alert.name,
            "exp_alerts": [_rung(alert, given)] if alert.name == rings else [],
        }
        for alert in ALERTS
    ]
    _test(folder, given, checks)


@PROMTOOL
def test_a_checkpoint_that_is_too_old(folder: Path) -> None:
    given = [series("training", "1x200"), series("checkpoint", "0x200")]
    alert = next(alert for alert in ALERTS if alert.name == "CheckpointTooOld")
    _test(
        folder,
        given,
        [
            {"eval_time": "60m", "alertname": alert.name, "exp_alerts": []},
            {"eval_time": "180m", "alertname": alert.name, "exp_alerts": [_rung(alert, given)]},
        ],
    )


def _rung(alert: Alert, given: list[dict[str, str]]) -> dict[str, Any]:
    """The alert that rings, with the labels of the series that it is about: the first that its condition names."""
    names = re.findall(r"framework_\w+", alert.expression())
    about = next(one["series"] for name in names for one in given if one["series"].startswith(f"{name}{{"))
    return {"exp_labels": {**dict(re.findall(r'(\w+)="(\w+)"', about)), "severity": alert.severity}}


def _test(folder: Path, given: list[dict[str, str]], checks: list[dict[str, Any]]) -> None:
    """promtool would compare the annotations as well: they are left out of the rules that it is given."""
    written = yaml.safe_load((folder / "rules.yaml").read_text())
    for rule in written["groups"][0]["rules"]:
        del rule["annotations"]
    (folder / "plain.yaml").write_text(yaml.safe_dump(written))
    case = {"interval": "1m", "input_series": given, "alert_rule_test": checks}
    file = folder / "test.yaml"
    file.write_text(yaml.safe_dump({"rule_files": ["plain.yaml"], "evaluation_interval": "1m", "tests": [case]}))
    promtool("test", "rules", str(file))
