"""The table of predictions: what its columns say, which rows are the worst, and what a broken write leaves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest

from framework.evaluation.examples import Example
from framework.evaluation.predictions import (
    box_column,
    displacement,
    plan_columns,
    read_parts,
    worst_rows,
    write_part,
    write_worst_page,
)
from framework.scene.kinematics import unicycle_rollout
from framework.scene.types import Boxes, Trajectory
from tests.evaluation.scenes import make_scene, straight


def _row(sample: str, **values: Any) -> dict[str, Any]:
    return {"sample": sample, "answers": [], "error": None, "ade": None, "plan": None} | values


def _answer(probability: float, task: str = "drive") -> dict[str, Any]:
    return {"task": task, "probability": probability}


def test_controls_drive_the_plan() -> None:
    scene = make_scene()
    controls = np.column_stack([np.linspace(1.0, -2.0, 20), np.linspace(-0.02, 0.03, 20)])
    states = unicycle_rollout(np.array([0.0, 0.0, 0.0, 8.0]), controls, 0.25)
    columns = plan_columns(scene, Trajectory(states))
    np.testing.assert_allclose([[c["acceleration"], c["curvature"]] for c in columns["controls"]], controls, atol=1e-9)
    assert [c["t"] for c in columns["controls"]] == [0.25 * k for k in range(20)]
    assert [state["t"] for state in columns["plan"]] == [0.25 * k for k in range(1, 21)]
    assert plan_columns(scene, None) == {"plan": None, "controls": None}


def test_displacement_is_over_the_time_that_both_cover() -> None:
    scene = make_scene()
    assert displacement(scene, Trajectory(straight(10.0, steps=4))) == pytest.approx(2.0 * 0.25 * 2.5)
    assert displacement(scene, Trajectory(straight(rate=2.0), 2.0)) is None
    assert displacement(make_scene(future=None), Trajectory(straight())) is None


def test_unparsed_plans_are_worst_then_the_farthest_then_the_least_probable() -> None:
    rows = [
        _row("near", ade=1.0, plan=[{}], answers=[_answer(0.1)]),
        _row("likely", plan=[{}], answers=[_answer(0.9)]),
        _row("far", ade=9.0, plan=[{}], answers=[_answer(0.9)]),
        _row("refused", error="no image"),
        _row("unlikely", plan=[{}], answers=[_answer(0.2)]),
        _row("unparsed", answers=[_answer(0.9)]),
    ]
    assert [row["sample"] for row in worst_rows(rows, 9)] == ["unparsed", "far", "near", "unlikely", "likely"]


def test_parts_read_back_as_they_were_written_and_a_broken_write_leaves_none(tmp_path: Path) -> None:
    boxes = Boxes(np.array([[60.0, 0.0, 0.8, 4.5, 1.8, 1.6, 0.0, np.nan, 0.0]]), ("car",), scores=np.array([0.5]))
    row = _row("0/0", scene="hand-1", boxes=box_column(boxes), **plan_columns(make_scene(), Trajectory(straight())))
    write_part(tmp_path, 1, [row])
    (read,) = read_parts(tmp_path)
    assert read["plan"] == row["plan"]
    assert read["boxes"][0]["label"] == "car"
    assert np.isnan(read["boxes"][0]["vx"])
    with pytest.raises(pyarrow.ArrowException):
        write_part(tmp_path, 0, [_row("0/1", ade="nearly two")])
    assert [file.name for file in tmp_path.iterdir()] == ["part-000001.parquet"]


def test_the_page_escapes_what_a_model_writes(tmp_path: Path) -> None:
    example = Example(make_scene()).with_answer("caption", "<script>alert(1)</script>", "x")
    write_worst_page(tmp_path / "page.html", "Worst", {}, [(None, example)], [("0/7", "<b>no image</b>")])
    page = (tmp_path / "page.html").read_text()
    assert "<script>" not in page
    assert "&lt;b&gt;no image" in page
