"""Compares runs: how their recipes differ, and what their newest evaluations found, with intervals.

    python -m framework compare RUN RUN ...

The first run is what the others are compared with.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from framework.evaluation.grid import Cell, Grid, Heading, Row
from framework.evaluation.intervals import (
    Interval,
    bootstrap,
    excludes_zero,
    independent,
    over_scene_pairs,
    over_scenes,
    share_difference,
    shifted,
    wilson,
)
from framework.evaluation.page import write_page
from framework.evaluation.results import COUNTS, MODEL, Sliced
from framework.evaluation.scene_rows import SceneRow, SceneValues, read_scene_rows, values_of
from framework.evaluation.table import COLUMNS, TITLES, Column, StageResults, evals
from framework.recipe.catalogue import Catalogue
from framework.recipe.overrides import COMMAND_LINE
from framework.recipe.problem import Problem, RecipeError, nearest
from framework.recipe.show import diff
from framework.recipe.stored import stored
from framework.run.files import read_json
from framework.run.layout import EVALUATED_FILE, RECIPE_FILE, RESULTS_FILE, RUNS, named_run, run_names
from framework.scene.types import ALL

PAGE = "compare.html"
"""The page, in the folder of the last run."""
BETTER, WORSE, NOISE, UNKNOWN = "better", "worse", "within noise", "noise unknown"


STYLES = {BETTER: "better", WORSE: "worse"}


@dataclass(frozen=True)
class EvaluatedRun:
    """A run with its newest evaluations."""

    name: str
    """The run's name."""
    folder: Path
    """Its folder."""
    newest: Mapping[str, Mapping[str, Any]]
    """By eval its results in the newest stage that has it."""
    scenes: Mapping[str, Sequence[SceneRow]]
    """By eval what these results measured of each scene; empty for runs that wrote none."""


@dataclass(frozen=True)
class Figures:
    """The figures of a run in one section of an eval."""

    run: str
    """The run's name."""
    sliced: Sliced
    """The model's metrics, by scenario kind."""
    section: str = ""
    """The section."""
    rows: Sequence[SceneRow] = ()
    """What was measured of each scene."""

    def by_scene(self, metric: str) -> SceneValues:
        """The measure by scene; empty where it is not known of scenes."""
        return values_of(self.rows, self.section, metric)


@dataclass(frozen=True)
class Comparison:
    """A figure of a run next to that of the first run."""

    run: str
    """The run's name."""
    text: str
    """The figure with its interval."""
    change: str
    """The difference from the first run with its interval; empty for the first run itself."""
    verdict: str
    """`better` or `worse` where the difference exceeds the noise, else `within noise`, or `noise unknown` where too few
    scenes or kinds of scenario tell; empty for the first run."""


def compare(names: Sequence[str], catalogue: Catalogue) -> int:
    """Print the comparison of the runs `names` and write its page. Returns the exit code.

    Raises `RecipeError` for fewer than two runs, for a folder that is no run, and for a run without results.
    """
    runs = _runs(names)
    recipes = [stored(run.folder, catalogue) for run in runs]
    differences = {run.name: diff(recipes[0], recipe) for run, recipe in zip(runs[1:], recipes[1:], strict=True)}
    tables = figures(runs)
    width = max(len(run.name) for run in runs)
    for name, lines in differences.items():
        print(f"recipe of {name} against {runs[0].name}:\n{lines or 'no difference' + chr(10)}")
    for title, rows in tables.items():
        print(title)
        for metric, comparisons in rows.items():
            for each in comparisons:
                print(f"  {metric:<24}{each.run:<{width}}  {each.text:<28}{each.change:<30}{each.verdict}".rstrip())
        print()
    page = runs[-1].folder / PAGE
    write_page(page, "compare.html.j2", title="Comparison of runs", identity={"runs": ", ".join(r.name for r in runs)},
               differences=differences, tables={title: _grid(rows) for title, rows in tables.items()})  # fmt: skip
    print(f"page: {page}")
    return 0


def figures(runs: Sequence[EvaluatedRun]) -> dict[str, dict[str, list[Comparison]]]:
    """{eval and section: {metric: comparisons}} of all figures that the first run and another have."""
    tables: dict[str, dict[str, list[Comparison]]] = {}
    for evaluator, results in runs[0].newest.items():
        for section, title in TITLES.items():
            of_runs = [
                Figures(run.name, run.newest[evaluator].get(section, {}).get(MODEL, {}), section, run.scenes[evaluator])
                for run in runs
                if evaluator in run.newest
            ]
            having = [each for each in of_runs if each.sliced]
            if section in results and len(having) > 1:
                rows = {column.label: compared(column, having) for column in COLUMNS[section]}
                tables[f"{title}, {evaluator}"] = {label: row for label, row in rows.items() if len(row) > 1}
    return {title: rows for title, rows in tables.items() if rows}


def compared(column: Column, runs: Sequence[Figures]) -> list[Comparison]:
    """The figures of one metric; runs that lack it are left out, and all where the first run does."""
    having = [each for each in runs if ALL in each.sliced.get(column.metric, {})]
    if not having or having[0] is not runs[0]:
        return []
    first = having[0]
    text = _with(column, first.sliced[column.metric][ALL], interval_of(column, first))
    rows = [Comparison(first.run, text, "", "")]
    for each in having[1:]:
        difference, interval = difference_of(column, first, each)
        improved = (difference > 0) == column.higher_is_better
        beyond, noise = BETTER if improved else WORSE, UNKNOWN if interval is None else NOISE
        verdict = beyond if excludes_zero(interval) else noise
        text = _with(column, each.sliced[column.metric][ALL], interval_of(column, each))
        rows.append(Comparison(each.run, text, _with(column, difference, interval, "+"), verdict))
    return rows


def interval_of(column: Column, figures: Figures) -> Interval | None:
    """The interval of a figure over all scenes; None where it is unknown."""
    values, counts = figures.sliced[column.metric], _counts(figures.sliced)
    if column.unit == "%" and counts.get(ALL):
        return wilson(min(1.0, max(0.0, values[ALL])), counts[ALL])
    if scenes := figures.by_scene(column.metric):
        return shifted(over_scenes(scenes), values[ALL])
    return shifted(bootstrap(_kinds(values), _kinds(counts)), values[ALL])


def difference_of(column: Column, old: Figures, new: Figures) -> tuple[float, Interval | None]:
    """The difference of a figure and its interval: of scenes in pairs where both runs measured the same ones. Runs
    without rows of scenes are compared by kind, in pairs where both have as many scenes of each.
    """
    before, after = old.sliced[column.metric], new.sliced[column.metric]
    difference = after[ALL] - before[ALL]
    scenes = [old.by_scene(column.metric), new.by_scene(column.metric)]
    if scenes[0] and scenes[0].keys() == scenes[1].keys():
        return difference, shifted(over_scene_pairs(*scenes), difference)
    counts = [_counts(old.sliced), _counts(new.sliced)]
    if column.unit == "%" and counts[0].get(ALL) and counts[1].get(ALL):
        shares = [min(1.0, max(0.0, value)) for value in (before[ALL], after[ALL])]
        return difference, share_difference(shares[0], counts[0][ALL], shares[1], counts[1][ALL])
    if counts[0] == counts[1] and before.keys() == after.keys():
        pairs = {kind: after[kind] - before[kind] for kind in _kinds(before)}
        return difference, shifted(bootstrap(pairs, _kinds(counts[0])), difference)
    halves = [bootstrap(_kinds(values), _kinds(count)) for values, count in zip((before, after), counts, strict=True)]
    if halves[0] is None or halves[1] is None:
        return difference, None
    return difference, shifted(independent(halves[0], halves[1]), difference)


def _runs(names: Sequence[str]) -> list[EvaluatedRun]:
    if len(names) < 2:
        raise _error("compare", f"needs two runs or more, not {len(names)}: give their folders, or names below {RUNS}")
    problems, runs = [], []
    for given in dict.fromkeys(names):
        folder = named_run(given)
        if folder is None:
            problems.append(no_run(str(given)))
            continue
        try:
            stages = json.loads((folder / RESULTS_FILE).read_text(encoding="utf-8"))
            newest = {evaluator: found for evals in stages.values() for evaluator, found in evals.items()}
            scenes = stage_rows(folder, {evaluator: stage for stage, evals in stages.items() for evaluator in evals})
        except FileNotFoundError:
            problems.append(Problem(COMMAND_LINE, given, f"has no {RESULTS_FILE}: it has evaluated nothing yet"))
            continue
        except (ValueError, AttributeError) as error:
            problems.append(Problem(COMMAND_LINE, given, f"its {RESULTS_FILE} is damaged ({error}); evaluate it again"))
            continue
        runs.append(EvaluatedRun(folder.resolve().name, folder, newest, scenes))
    if problems:
        raise RecipeError(problems)
    if len(runs) < 2:
        raise _error("compare", "needs two different runs")
    if len({run.name for run in runs}) < len(runs):
        runs = [replace(run, name=str(run.folder)) for run in runs]
    return runs


def no_run(name: str) -> Problem:
    """The fault of a command line that names a run which does not exist, with the nearest that does."""
    below = Path(name).is_relative_to(RUNS)
    places = [name] if below or Path(name).is_absolute() else [name, str(RUNS / name)]
    near = nearest(str(Path(name).relative_to(RUNS)) if below else name, run_names())
    return Problem(COMMAND_LINE, name, f"no run: there is no {RECIPE_FILE} in {' or '.join(places)}", near)


def stage_rows(folder: Path, stage_of: Mapping[str, str]) -> dict[str, list[SceneRow]]:
    """By eval the rows of scenes of its results in a stage of the run in `folder`."""
    evaluated, rows = read_json(folder / EVALUATED_FILE) or {}, {}
    for evaluator, stage in stage_of.items():
        entry = evaluated.get(stage, {}).get(evaluator, {})
        of = {key: value for key, value in entry.items() if key != "results"}
        rows[evaluator] = read_scene_rows(folder, stage, evaluator, of) if of else []
    return rows


def _error(key: str, message: str) -> RecipeError:
    return RecipeError([Problem(COMMAND_LINE, key, message)])


def _counts(sliced: Sliced) -> dict[str, float]:
    return next((sliced[name] for name in COUNTS if name in sliced), {})


def _kinds(values: Mapping[str, float]) -> dict[str, float]:
    return {kind: value for kind, value in values.items() if kind != ALL}


def stage_changes(folder: Path, stages: StageResults) -> dict[str, Grid]:
    """{eval and section: figures} of the first stage of the run in `folder` that has an eval, next to its last stage:
    what training changed, on the same scenes. Empty where nothing was evaluated twice.
    """
    grids: dict[str, Grid] = {}
    for evaluator in evals(stages):
        having = [stage for stage, results in stages.items() if evaluator in results]
        if len(having) > 1:
            ends = [
                EvaluatedRun(
                    name, folder, {evaluator: stages[stage][evaluator]}, stage_rows(folder, {evaluator: stage})
                )
                for name, stage in (("before", having[0]), ("after", having[-1]))
            ]
            grids |= {title: _changes(rows) for title, rows in figures(ends).items()}
    return grids


def _with(column: Column, value: float, interval: Interval | None, sign: str = "") -> str:
    scale, unit = (100, " %") if column.unit == "%" else (1, f" {column.unit}" if column.unit else "")
    ends = "" if interval is None else f" [{scale * interval.low:{sign}.3g}, {scale * interval.high:{sign}.3g}]"
    return f"{scale * value:{sign}.3g}{unit}{ends}"


def _grid(rows: Mapping[str, Sequence[Comparison]]) -> Grid:
    headings = [Heading(text) for text in ("figure", "run", "value [95 %]", "change [95 %]", "")]
    lines = []
    for metric, comparisons in rows.items():
        for index, each in enumerate(comparisons):
            cells = [metric if index == 0 else "", each.run, each.text, each.change, each.verdict]
            lines.append(Row([*map(Cell, cells[:-1]), Cell(cells[-1], STYLES.get(each.verdict, ""))]))
    return Grid(headings, lines)


def _changes(rows: Mapping[str, Sequence[Comparison]]) -> Grid:
    """The figures of two stages, one row each."""
    before, after = next(iter(rows.values()))
    headings = [Heading(text) for text in ("figure", before.run, after.run, "change [95 %]", "")]
    lines = []
    for metric, (first, last) in rows.items():
        texts = [Cell(text) for text in (metric, first.text, last.text, last.change)]
        lines.append(Row([*texts, Cell(last.verdict, STYLES.get(last.verdict, ""))]))
    return Grid(headings, lines)
