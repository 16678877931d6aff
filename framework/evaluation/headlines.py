"""The figures by which a model is judged first, after each stage, with 95 % intervals over the evaluated scenes."""

from __future__ import annotations

from pathlib import Path

from framework.evaluation.compare import Figures, interval_of, stage_rows
from framework.evaluation.results import LOSS, MODEL, SIMULATION
from framework.evaluation.table import COLUMNS, Column, StageResults, aligned, evals
from framework.scene.types import ALL

HEADLINES = {
    "drive": ("ade", "collision"),
    SIMULATION: ("planning_score", "at_fault_collision", "off_road"),
    "detect": ("map",),
    "answer": ("accuracy",),
    LOSS: ("loss",),
}
"""By section, the metrics that come first."""


def headline_table(folder: Path, stages: StageResults) -> str:
    """A block per eval of the run in `folder`: a row per figure, a column per stage, each value with its interval.

    Of shares the interval is Wilson's, of other figures a bootstrap over scenes, or over kinds of scenario where a
    figure is none of single scenes. Empty where nothing was evaluated.
    """
    blocks = []
    rows = {stage: stage_rows(folder, dict.fromkeys(results, stage)) for stage, results in stages.items()}
    for eval_name in evals(stages):
        having = [stage for stage, results in stages.items() if eval_name in results]
        lines = []
        for section, metrics in HEADLINES.items():
            of = {
                stage: Figures(
                    stage, stages[stage][eval_name].get(section, {}).get(MODEL, {}), section, rows[stage][eval_name]
                )
                for stage in having
            }
            columns = [column for column in COLUMNS[section] if column.metric in metrics]
            for column in columns:
                cells = [_text(column, figures) for figures in of.values()]
                if any(cells):
                    lines.append([f"{column.label}{f' ({column.unit})' if column.unit else ''} {column.arrow}", *cells])
        if lines:
            blocks.append(aligned([[f"{eval_name} [95 %]", *having], *lines], heading=1))
    return "\n\n".join(blocks)


def _text(column: Column, figures: Figures) -> str:
    """The figure with its interval; empty where the stage lacks it."""
    value = figures.sliced.get(column.metric, {}).get(ALL)
    if value is None:
        return ""
    interval = interval_of(column, figures)
    ends = "" if interval is None else f" [{column.format(interval.low)}, {column.format(interval.high)}]"
    return f"{column.format(value)}{ends}"
