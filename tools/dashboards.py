"""Write the Grafana dashboard and the Prometheus alert rules for training runs.

python -m tools.dashboards --out FOLDER       dashboard.json, rules.yaml

Both are generated from `framework.tracking.metric_table`: neither can name a metric that no node exports.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import yaml

from framework.tracking.alerts import rules
from framework.tracking.metric_table import METRICS, Metric

COLUMNS, WIDTH, HEIGHT = 3, 8, 7
"""Panels per row, and a panel's size on Grafana's grid of 24 columns."""
SOURCE = {"type": "prometheus", "uid": "${source}"}


def query(metric: Metric) -> str:
    """A panel's PromQL query, for the selected runs and nodes."""
    selected = f'{metric.name}{{run=~"$run", node=~"$node"}}'
    return {"value": selected, "rate": f"rate({selected}[$__rate_interval])", "age": f"time() - {selected}"}[
        metric.shown
    ]


def dashboard() -> dict[str, Any]:
    """The dashboard as Grafana's JSON model."""
    return {
        "uid": "framework-runs",
        "title": "Training runs",
        "schemaVersion": 39,
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "templating": {"list": [_source(), _choice("run"), _choice("node")]},
        "panels": list(_panels()),
    }


def _panels() -> Iterator[dict[str, Any]]:
    top, number = 0, 0
    for section, metrics in groupby(METRICS.values(), key=lambda metric: metric.section):
        number += 1
        place = {"x": 0, "y": top, "w": 24, "h": 1}
        yield {"id": number, "type": "row", "title": section, "gridPos": place, "collapsed": False, "panels": []}
        top += 1
        panels = list(metrics)
        for position, metric in enumerate(panels):
            number += 1
            place = {"x": position % COLUMNS * WIDTH, "y": top + position // COLUMNS * HEIGHT, "w": WIDTH, "h": HEIGHT}
            yield _panel(metric, number, place)
        top += -(-len(panels) // COLUMNS) * HEIGHT


def _panel(metric: Metric, number: int, place: dict[str, int]) -> dict[str, Any]:
    legend = " ".join(f"{{{{{label}}}}}" for label in ("run", "node", *metric.labels))
    return {
        "id": number,
        "type": "timeseries",
        "title": metric.text,
        "description": metric.name,
        "datasource": SOURCE,
        "gridPos": place,
        "fieldConfig": {"defaults": {"unit": metric.unit}, "overrides": []},
        "targets": [{"refId": "A", "datasource": SOURCE, "expr": query(metric), "legendFormat": legend}],
    }


def _source() -> dict[str, Any]:
    return {"name": "source", "type": "datasource", "query": "prometheus"}


def _choice(label: str) -> dict[str, Any]:
    """A template variable with all values of `label`, initially all selected."""
    values = f"label_values({METRICS['step'].name}, {label})"
    every = {"text": "All", "value": "$__all"}
    choice = {"name": label, "type": "query", "datasource": SOURCE, "query": values, "definition": values}
    return {**choice, "includeAll": True, "multi": True, "refresh": 2, "current": every}


def main(arguments: list[str] | None = None) -> int:
    """Write both files."""
    parser = argparse.ArgumentParser(prog="python -m tools.dashboards", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="output folder")
    folder: Path = parser.parse_args(arguments).out
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "dashboard.json").write_text(json.dumps(dashboard(), indent=1) + "\n", encoding="utf-8")
    (folder / "rules.yaml").write_text(yaml.safe_dump(rules(), sort_keys=False, width=120), encoding="utf-8")
    print(f"{folder / 'dashboard.json'}\n{folder / 'rules.yaml'}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
