"""How metrics are named, ordered and written for people, and the table of results for a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from framework.evaluation.slices import ALL, Sliced
from framework.evaluation.suite import MODEL, SIMULATION, Results

Stages = Mapping[str, Mapping[str, Results]]
"""{stage: {examination: results}}, stages in the order in which they were trained."""


@dataclass(frozen=True, slots=True)
class Column:
    """A metric as a column. `share` is written in per cent; `high` says that more is better."""

    metric: str
    label: str
    unit: str = ""
    share: bool = False
    high: bool = False

    def write(self, value: float | None) -> str:
        """The value with as many digits as mean something; a dash where unknown."""
        if value is None:
            return "\N{EN DASH}"
        return f"{100 * value:.1f} %" if self.share else f"{value:.2f}" if abs(value) < 100 else f"{value:.0f}"

    @property
    def heading(self) -> str:
        """Label, unit, and an arrow towards the better."""
        unit = f" {self.unit}" if self.unit else ""
        return f"{self.label}{unit} {'↑' if self.high else '↓'}"


_DRIVING = (
    Column("ade", "ADE", "m"),
    Column("fde", "FDE", "m"),
    Column("min_ade", "minADE", "m"),
    Column("miss", "miss", share=True),
    Column("collision", "collision", share=True),
    Column("off_road", "off road", share=True),
    Column("comfortable", "comfort", share=True, high=True),
    Column("parse_failure", "parse fail", share=True),
)
COLUMNS: dict[str, tuple[Column, ...]] = {
    "drive": _DRIVING,
    "reason": _DRIVING,
    SIMULATION: (
        Column("planning_score", "PDM", high=True),
        Column("reward", "reward", high=True),
        Column("at_fault_collision", "at-fault collision", share=True),
        Column("collision", "collision", share=True),
        Column("off_road", "off road", share=True),
        Column("red_light", "red light", share=True),
        Column("close_call", "close call", share=True),
        Column("progress", "progress", share=True, high=True),
        Column("comfortable", "comfort", share=True, high=True),
        Column("parse_failure", "parse fail", share=True),
    ),
    "detect": (
        Column("nds", "NDS", high=True),
        Column("map", "mAP", high=True),
        Column("map_present", "mAP seen", high=True),
        Column("translation_error", "ATE", "m"),
        Column("scale_error", "ASE"),
        Column("orientation_error", "AOE", "rad"),
        Column("velocity_error", "AVE", "m/s"),
        Column("attribute_error", "AAE"),
        Column("parse_failure", "parse fail", share=True),
    ),
    "answer": (
        Column("accuracy", "accuracy", share=True, high=True),
        Column("parse_failure", "parse fail", share=True),
    ),
    "caption": (
        Column("word_f1", "word F1", share=True, high=True),
        Column("parse_failure", "parse fail", share=True),
    ),
}
"""The columns of each section's table, in order."""
TITLES = {
    "drive": "Driving",
    "reason": "Driving with reasons",
    SIMULATION: "Simulated driving",
    "detect": "Detection",
    "answer": "Answers",
    "caption": "Captions",
}


def rows_of(stages: Stages, examination: str, section: str) -> dict[str, Sliced]:
    """The rows of a section: the model after each stage, then the baselines as the last stage has them."""
    found = {stage: results.get(examination, {}).get(section, {}) for stage, results in stages.items()}
    baselines: dict[str, Sliced] = {}
    for methods in found.values():
        baselines |= {name: sliced for name, sliced in methods.items() if name != MODEL}
    return {stage: methods[MODEL] for stage, methods in found.items() if MODEL in methods} | baselines


def evals(stages: Stages) -> list[str]:
    """The evals' names, in order of appearance."""
    return list(dict.fromkeys(name for results in stages.values() for name in results))


def shown_columns(rows: Mapping[str, Sliced], section: str) -> list[Column]:
    """The columns of a section that any row has a value for."""
    return [column for column in COLUMNS[section] if any(ALL in row.get(column.metric, {}) for row in rows.values())]


def table(stages: Stages) -> str:
    """Stages and baselines by metrics, as text: a block per section and examination, figures over all scenes."""
    blocks = []
    for examination in evals(stages):
        for section, title in TITLES.items():
            rows = rows_of(stages, examination, section)
            if rows:
                columns = shown_columns(rows, section)
                cells = [[f"{title}, {examination}", *(column.heading for column in columns)]]
                cells += [
                    [name, *(c.write(row.get(c.metric, {}).get(ALL)) for c in columns)] for name, row in rows.items()
                ]
                blocks.append(_aligned(cells))
    return "\n\n".join(blocks)


def _aligned(cells: list[list[str]]) -> str:
    """Rows of text in columns: the first to the left, the others to the right, a rule below the heading."""
    widths = [max(len(row[index]) for row in cells) for index in range(len(cells[0]))]
    lines = [
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in cells
    ]
    return "\n".join([lines[0], "\N{BOX DRAWINGS LIGHT HORIZONTAL}" * len(lines[0]), *lines[1:]])
