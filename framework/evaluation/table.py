"""The columns of result tables, and the table for a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from framework.evaluation.results import LOSS, MODEL, SIMULATION, Results, Sliced
from framework.scene.types import ALL

StageResults = Mapping[str, Mapping[str, Results]]
"""{stage: {eval: results}}, stages in the order of training."""


@dataclass(frozen=True, slots=True)
class Column:
    """A metric as a table's column."""

    metric: str
    """The metric's key in `Sliced`."""
    label: str
    """The heading."""
    unit: str = ""
    """The unit of the values as they are written; "%" turns fractions into per cent."""
    higher_is_better: bool = False
    """Which way the heading's arrow points."""

    def format(self, value: float | None) -> str:
        """`value` with three or so significant digits; a dash where it is unknown."""
        if value is None:
            return "\N{EN DASH}"
        shown = round(100 * value, 1) + 0.0 if self.unit == "%" else round(value, 2) + 0.0  # -0.0 + 0.0 is 0.0
        return f"{shown:.1f}" if self.unit == "%" else f"{shown:.2f}" if abs(value) < 100 else f"{value:.0f}"

    @property
    def arrow(self) -> str:
        """Points towards the better."""
        return "↑" if self.higher_is_better else "↓"


_PARSE_FAILURES = Column("parse_failure", "parse failures", "%")
_DRIVING = (
    Column("ade", "ADE", "m"),
    Column("fde", "FDE", "m"),
    Column("min_ade", "minADE", "m"),
    Column("miss", "misses", "%"),
    Column("collision", "collisions", "%"),
    Column("off_road", "off road", "%"),
    Column("comfortable", "comfortable", "%", higher_is_better=True),
    _PARSE_FAILURES,
)
ACCURACY = Column("accuracy", "accuracy", "%", higher_is_better=True)
AVERAGE_PRECISION = Column("ap", "AP", higher_is_better=True)
COLUMNS: dict[str, tuple[Column, ...]] = {
    "drive": _DRIVING,
    "reason": _DRIVING,
    SIMULATION: (
        Column("planning_score", "PDM score", higher_is_better=True),
        Column("scene_score", "AlpaSim score", higher_is_better=True),
        Column("reward", "reward", higher_is_better=True),
        Column("at_fault_collision", "at-fault collisions", "%"),
        Column("collision", "collisions", "%"),
        Column("off_road", "off road", "%"),
        Column("red_light", "red lights run", "%"),
        Column("close_call", "close calls", "%"),
        Column("progress", "progress", "%", higher_is_better=True),
        Column("comfortable", "comfortable", "%", higher_is_better=True),
        _PARSE_FAILURES,
    ),
    "detect": (
        Column("nds", "NDS", higher_is_better=True),
        Column("map", "mAP", higher_is_better=True),
        Column("map_present", "mAP present", higher_is_better=True),
        Column("translation_error", "ATE", "m"),
        Column("scale_error", "ASE", "1-IoU"),
        Column("orientation_error", "AOE", "rad"),
        Column("velocity_error", "AVE", "m/s"),
        Column("attribute_error", "AAE", "1-acc"),
        _PARSE_FAILURES,
    ),
    "answer": (ACCURACY, _PARSE_FAILURES),
    "caption": (Column("word_f1", "word F1", "%", higher_is_better=True), _PARSE_FAILURES),
    LOSS: (Column("loss", "loss", "nats"), Column("token_accuracy", "tokens right", "%", higher_is_better=True)),
}
"""The columns of each section's table, in order."""
TITLES = {
    "drive": "Driving",
    "reason": "Driving with reasons",
    SIMULATION: "Simulated driving",
    "detect": "Detection",
    "answer": "Answers",
    "caption": "Captions",
    LOSS: "Expected answers",
}


def rows_of(stages: StageResults, eval_name: str, section: str) -> dict[str, Sliced]:
    """The rows of a section: the model after each stage, then the baselines of the last stage that has them."""
    by_stage = {stage: results.get(eval_name, {}).get(section, {}) for stage, results in stages.items()}
    baselines: dict[str, Sliced] = {}
    for methods in by_stage.values():
        baselines |= {name: sliced for name, sliced in methods.items() if name != MODEL}
    return {stage: methods[MODEL] for stage, methods in by_stage.items() if MODEL in methods} | baselines


def evals(stages: StageResults) -> list[str]:
    """The names of all evals, in order of appearance."""
    return list(dict.fromkeys(name for results in stages.values() for name in results))


def shown_columns(rows: Mapping[str, Sliced], section: str) -> list[Column]:
    """The columns of a section for which any row has a value."""
    return [column for column in COLUMNS[section] if any(ALL in row.get(column.metric, {}) for row in rows.values())]


def results_table(stages: StageResults) -> str:
    """Results over all scenes as text: a block per eval and section, a row per stage and baseline."""
    blocks = []
    for eval_name in evals(stages):
        for section, title in TITLES.items():
            rows = rows_of(stages, eval_name, section)
            if rows:
                columns = shown_columns(rows, section)
                cells = [
                    [f"{title}, {eval_name}", *(column.label for column in columns)],
                    ["", *(f"{column.unit} {column.arrow}".lstrip() for column in columns)],
                ]
                cells += [
                    [name, *(c.format(row.get(c.metric, {}).get(ALL)) for c in columns)] for name, row in rows.items()
                ]
                blocks.append(aligned(cells, heading=2))
    return "\n\n".join(blocks)


def aligned(cells: list[list[str]], heading: int) -> str:
    """Rows of text in columns: the first aligned left, the others right, a rule below the `heading` first rows."""
    widths = [max(len(row[index]) for row in cells) for index in range(len(cells[0]))]
    lines = [
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in cells
    ]
    rule = "\N{BOX DRAWINGS LIGHT HORIZONTAL}" * len(lines[0])
    return "\n".join([*lines[:heading], rule, *lines[heading:]])
