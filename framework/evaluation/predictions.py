"""Predictions as parquet files, one row a sample, and the page of the worst.

A part is a file of neighbouring samples, written whole: however often and wherever a job is killed, a sample has a row
in exactly one part, or none yet. Pandas, Polars and pyarrow read the folder of parts as one table.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet

from framework.evaluation.examples import Example
from framework.evaluation.page import write_page
from framework.evaluation.scene_view import LEGEND, scene_view
from framework.run.files import replacing
from framework.scene.kinematics import unicycle_controls
from framework.scene.types import Boxes, Scene, Trajectory

STATE = ("t", "x", "y", "heading", "speed")
"""Fields of a plan's state: s from now, m, m, rad, m/s, in the ego frame."""
CONTROL = ("t", "acceleration", "curvature")
"""Fields of a control: s from now at which it begins, m/s^2, 1/m."""
BOX = ("x", "y", "z", "length", "width", "height", "yaw", "vx", "vy", "score")
"""Numbers of a box, as in `Boxes`, and its score."""

_ANSWER = {
    "task": pyarrow.string(), "question": pyarrow.string(), "topic": pyarrow.string(), "text": pyarrow.string(),
    "truth": pyarrow.string(), "parsed": pyarrow.bool_(), "complete": pyarrow.bool_(), "tokens": pyarrow.int32(),
    "logprob": pyarrow.float64(), "probability": pyarrow.float64(), "seconds": pyarrow.float64(),
}  # fmt: skip


def _numbers(names: Sequence[str]) -> dict[str, Any]:
    return dict.fromkeys(names, pyarrow.float64())


def _list(fields: Mapping[str, Any]) -> Any:
    return pyarrow.list_(pyarrow.struct(list(fields.items())))


SCHEMA = pyarrow.schema({
    "sample": pyarrow.string(),  # shard/place in the source, unique
    "scene": pyarrow.string(),
    "kind": pyarrow.string(),
    "command": pyarrow.string(),
    "error": pyarrow.string(),  # why nothing was predicted, else null
    "plan": _list(_numbers(STATE)),  # null where no answer spells one
    "controls": _list(_numbers(CONTROL)),  # those that drive the plan
    "boxes": _list({"label": pyarrow.string(), **_numbers(BOX)}),
    "answers": _list(_ANSWER),  # of all tasks; logprob, tokens and seconds are those of the task's whole text
    "ade": pyarrow.float64(),  # m, against the recorded future; null where there is none
    "seconds": pyarrow.float64(),  # rendering and generation
})  # fmt: skip
"""The columns of the table."""

PLAN_TASKS = ("drive", "reason")
"""Tasks whose answer is the row's plan, the first that parses."""


def plan_columns(scene: Scene, plan: Trajectory | None) -> dict[str, Any]:
    """The columns `plan` and `controls` of a plan; nulls without one."""
    if plan is None or scene.history is None:
        return {"plan": None, "controls": None}
    dt = 1.0 / plan.rate_hz
    start = np.array([0.0, 0.0, 0.0, float(scene.history.states[-1, 3])])
    controls = unicycle_controls(start, np.asarray(plan.states, dtype=np.float64), dt)
    times = dt * np.arange(len(plan.states) + 1)
    return {
        "plan": _structs(STATE, np.column_stack([times[1:], plan.states])),
        "controls": _structs(CONTROL, np.column_stack([times[:-1], controls])),
    }


def box_column(boxes: Boxes | None) -> list[dict[str, Any]] | None:
    """The column `boxes`; None without a detection."""
    if boxes is None:
        return None
    scores = np.ones(len(boxes)) if boxes.scores is None else boxes.scores
    rows = _structs(BOX, np.column_stack([boxes.values, scores]))
    return [{"label": label, **row} for label, row in zip(boxes.labels, rows, strict=True)]


def _structs(names: Sequence[str], rows: Any) -> list[dict[str, float]]:
    return [dict(zip(names, row, strict=True)) for row in rows.tolist()]


def displacement(scene: Scene, plan: Trajectory | None) -> float | None:
    """ADE (m) over the time that plan and recorded future share; None where one is missing or their rates differ."""
    if plan is None or scene.future is None or plan.rate_hz != scene.future.rate_hz:
        return None
    steps = min(len(plan.states), len(scene.future.states))
    gaps = plan.states[:steps, :2] - scene.future.states[:steps, :2]
    return float(np.hypot(gaps[:, 0], gaps[:, 1]).mean())


def part_file(folder: Path, number: int) -> Path:
    """The file of a part."""
    return folder / f"part-{number:06d}.parquet"


def write_part(folder: Path, number: int, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write a part whole and durably."""
    with replacing(part_file(folder, number)) as fresh:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows), schema=SCHEMA), fresh)


def read_parts(folder: Path) -> list[dict[str, Any]]:
    """The rows of all parts, in the source's order."""
    rows: list[dict[str, Any]] = []
    for file in sorted(folder.glob("part-*.parquet")):
        rows += pyarrow.parquet.read_table(file).to_pylist()
    return rows


def worst_rows(rows: Iterable[Mapping[str, Any]], count: int) -> list[Mapping[str, Any]]:
    """The `count` worst of the rows that predict something, worst first: plans that do not parse, then by ADE; where no
    future is recorded, by the plan's mean probability per token.
    """
    return sorted((row for row in rows if row["error"] is None), key=_quality)[:count]


def _quality(row: Mapping[str, Any]) -> tuple[int, float]:
    driven = [answer for answer in row["answers"] if answer["task"] in PLAN_TASKS]
    if driven and row["plan"] is None:
        return 0, 0.0
    if row["ade"] is not None:
        return 1, -row["ade"]
    return 2, min((answer["probability"] for answer in row["answers"]), default=math.inf)


def write_worst_page(
    path: Path, title: str, identity: Mapping[str, object], examples: Sequence[tuple[float | None, Example]],
    refused: Sequence[tuple[str, str]],
) -> None:  # fmt: skip
    """Write the page of the worst predictions, readable offline.

    Args:
        path: The page.
        title: Its title.
        identity: What the predictions are of.
        examples: (ADE in m or None, scene with answers), worst first.
        refused: (sample, reason) of samples without a prediction.
    """
    views = [scene_view(f"worst {number}", each, ade) for number, (ade, each) in enumerate(examples, start=1)]
    write_page(path, "predictions.html.j2", title=title, identity=identity, legend=LEGEND, scenes=views,
               refused=refused)  # fmt: skip
