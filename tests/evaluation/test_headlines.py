"""The figures that come first, with their intervals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from scipy import stats

from framework.evaluation.headlines import HEADLINES, headline_table
from framework.evaluation.table import COLUMNS

KINDS = ("curve", "cut_in", "intersection", "lead_braking", "roundabout")


def _drive(ade: list[float], collisions: float) -> dict[str, Any]:
    def by_kind(values: list[float]) -> dict[str, float]:
        return {"all": sum(values) / len(values), **dict(zip(KINDS, values, strict=True))}

    counts = {"all": 100, **dict.fromkeys(KINDS, 20)}
    measures = {"ade": by_kind(ade), "collision": by_kind([collisions] * 5), "fde": by_kind(ade), "scenes": counts}
    return {"drive": {"model": measures, "stay": measures}}


def test_each_stage_has_its_figures_with_intervals_and_no_other_metric_or_method(tmp_path: Path) -> None:
    broad, rl = _drive([1.0, 4.0, 2.0, 8.0, 3.0], 0.2), _drive([1.0, 1.0, 1.0, 1.0, 1.0], 0.1)
    lines = headline_table(tmp_path, {"broad": {"held_out": broad}, "rl": {"held_out": rl}}).splitlines()
    assert lines[0].split() == ["held_out", "[95", "%]", "broad", "rl"]
    assert [line.split()[0] for line in lines[2:]] == ["ADE", "collisions"]
    exact = stats.binomtest(20, 100).proportion_ci(method="wilson")
    assert f"20.0 [{100 * exact.low:.1f}, {100 * exact.high:.1f}]" in lines[3]
    assert lines[2].endswith("1.00 [1.00, 1.00]"), "kinds that are all alike leave no doubt"


def test_a_stage_without_the_eval_has_no_column_and_one_without_the_task_an_empty_cell(tmp_path: Path) -> None:
    answers = {"answer": {"model": {"accuracy": {"all": 0.5}, "questions": {"all": 40}}}}
    stages = {"untrained": {"held_out": answers}, "broad": {"held_out": _drive([1.0] * 5, 0.2) | answers}, "rl": {}}
    first, _, ade, collisions, accuracy = headline_table(tmp_path, stages).splitlines()
    assert first.split()[3:] == ["untrained", "broad"]
    assert ade.split()[:3] == ["ADE", "(m)", "↓"]
    assert "1.00" in ade
    assert "20.0" in collisions
    assert accuracy.count("50.0 [35.2, 64.8]") == 2


@pytest.mark.parametrize("section", HEADLINES)
def test_every_headline_is_a_column_of_its_section(section: str) -> None:
    assert set(HEADLINES[section]) <= {column.metric for column in COLUMNS[section]}


def test_nothing_evaluated_is_no_table(tmp_path: Path) -> None:
    assert headline_table(tmp_path, {}) == ""
