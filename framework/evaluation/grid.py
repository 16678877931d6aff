"""Tables of a page as values: headings, rows and cells with their CSS classes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from framework.evaluation.detection import DISTANCES, RINGS
from framework.evaluation.results import COUNTS, MODEL, PERCEPTION, Sliced
from framework.evaluation.table import ACCURACY, AVERAGE_PRECISION, COLUMNS, Column, shown_columns
from framework.scene.types import ALL, DETECTION_CLASSES


@dataclass(frozen=True, slots=True)
class Cell:
    """A cell's text and CSS class."""

    text: str
    css: str = ""


@dataclass(frozen=True, slots=True)
class Heading:
    """A column's heading; the unit stands on a second line."""

    text: str
    unit: str = ""
    css: str = ""


@dataclass(frozen=True, slots=True)
class Row:
    """A row's cells and CSS class."""

    cells: Sequence[Cell]
    css: str = ""


@dataclass(frozen=True, slots=True)
class Grid:
    """A table."""

    headings: Sequence[Heading]
    rows: Sequence[Row]


def methods_by_metrics(
    corner: str, columns: Sequence[Column], rows: Mapping[str, Sliced], baselines: Sequence[str]
) -> Grid:
    """The model's stages and the baselines, one row each, over all scenes.

    The best stage is bold in each column; a rule separates the baselines.
    """
    stages = [name for name in rows if name not in baselines]
    best = {column.metric: _best(column, [rows[name] for name in stages]) for column in columns}
    lines = []
    for name, row in rows.items():
        css = "last" if stages and name == stages[-1] else ""
        if name in baselines:
            css = "baseline first-baseline" if name == baselines[0] else "baseline"
        cells = [Cell(name)]
        for column in columns:
            value = overall(row, column.metric)
            is_best = name in stages and value is not None and value == best[column.metric]
            cells.append(Cell(column.format(value), "best" if is_best else ""))
        lines.append(Row(cells, css))
    return Grid([Heading(corner), *map(_heading, columns)], lines)


def model_by_kind(section: str, methods: Mapping[str, Sliced]) -> Grid:
    """The model's metrics by scenario kind; for the section's first metric the baselines' as well."""
    model = methods[MODEL]
    first, *others = shown_columns({MODEL: model}, section)
    baselines = {name: sliced for name, sliced in methods.items() if name != MODEL}
    columns = [(first, model), *((first, sliced) for sliced in baselines.values()), *((one, model) for one in others)]
    headings = [_heading(first), *(_heading(first, name) for name in baselines), *map(_heading, others)]
    unit = next(name for name in COUNTS if name in model)
    rows = []
    for kind, count in model[unit].items():
        cells = [_named(kind), Cell(f"{count:.0f}")]
        cells += [Cell(column.format(sliced.get(column.metric, {}).get(kind))) for column, sliced in columns]
        rows.append(Row(cells, "last" if kind == ALL else ""))
    return Grid([Heading("scenario kind"), Heading(unit), *headings], rows)


def detection_by_class(methods: Mapping[str, Sliced]) -> Grid:
    """By class the model's average precision, at each distance and on average, the perception stack's average, and the
    model's errors.
    """
    model, perception = methods.get(MODEL, {}), methods.get(PERCEPTION, {})
    columns = [replace(AVERAGE_PRECISION, unit=f"{distance:g} m") for distance in DISTANCES]
    columns += [replace(AVERAGE_PRECISION, label="mean AP", unit=name) for name in (MODEL, PERCEPTION)]
    errors = _errors()
    rows = []
    for name in DETECTION_CLASSES:
        mean = f"ap/{name}"
        if mean in model or mean in perception:
            values = [overall(model, f"{mean}/{distance:g}m") for distance in DISTANCES]
            values += [overall(model, mean), overall(perception, mean)]
            values += [overall(model, f"{error.metric}/{name}") for error in errors]
            rows.append(Row([_named(name), *(Cell(AVERAGE_PRECISION.format(value)) for value in values)]))
    return Grid([Heading("class"), *map(_heading, [*columns, *errors])], rows)


def detection_by_distance(methods: Mapping[str, Sliced]) -> Grid:
    """By distance of the boxes from the ego the mAP of model and perception stack, and the model's errors."""
    model, perception = methods.get(MODEL, {}), methods.get(PERCEPTION, {})
    (precision,) = (column for column in COLUMNS["detect"] if column.metric == "map_present")
    columns = [replace(precision, unit=name) for name in (MODEL, PERCEPTION)]
    rows = []
    for nearest, farthest in RINGS:
        ring = f"{nearest:g}-{farthest:g}m"
        values = [overall(each, f"map_present/{ring}") for each in (model, perception)]
        values += [overall(model, f"{error.metric}/{ring}") for error in _errors()]
        cells = [Cell(precision.format(value)) for value in values]
        rows.append(Row([Cell(f"{nearest:g} to {farthest:g} m"), *cells]))
    return Grid([Heading("distance"), *map(_heading, [*columns, *_errors()])], rows)


def _errors() -> list[Column]:
    return [column for column in COLUMNS["detect"] if column.metric.endswith("_error")]


def accuracy_by_topic(methods: Mapping[str, Sliced]) -> Grid:
    """The accuracy of answers by topic: the model's and the majority baseline's."""
    model, majority = methods.get(MODEL, {}), methods.get("majority", {})
    rows = [
        Row([Cell(metric.partition("/")[2]), *(Cell(ACCURACY.format(overall(m, metric))) for m in (model, majority))])
        for metric in model
        if metric.startswith("accuracy/")
    ]
    columns = [replace(ACCURACY, label=name) for name in (MODEL, "majority")]
    return Grid([Heading("topic"), *map(_heading, columns)], rows)


def text_cells(texts: Iterable[str]) -> list[Cell]:
    """Cells of running text: aligned left, and wrapped."""
    return [Cell(text, "text") for text in texts]


def text_headings(texts: Iterable[str]) -> list[Heading]:
    """The headings above `text_cells`."""
    return [Heading(text, css="text") for text in texts]


def overall(sliced: Sliced, metric: str) -> float | None:
    """A metric over all scenes; None where it is unknown."""
    return sliced.get(metric, {}).get(ALL)


def _heading(column: Column, method: str = "") -> Heading:
    """Label and arrow above the unit and, for a column of a baseline, its `method`."""
    return Heading(f"{column.label} {column.arrow}", ", ".join(filter(None, (column.unit, method))))


def _named(key: str) -> Cell:
    return Cell(key.replace("_", " "))


def _best(column: Column, rows: Sequence[Sliced]) -> float | None:
    """The best value, unless all rows have the same."""
    values = [value for value in (overall(row, column.metric) for row in rows) if value is not None]
    return (max if column.higher_is_better else min)(values) if len(set(values)) > 1 else None
