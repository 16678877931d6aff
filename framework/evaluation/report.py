"""The report of a run: one HTML file with tables, curves, pictures of scenes and answers, readable offline."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from framework.evaluation.answers import is_correct
from framework.evaluation.examples import Example
from framework.evaluation.grid import (
    Cell,
    Grid,
    Heading,
    Row,
    accuracy_by_topic,
    detection_by_class,
    detection_by_distance,
    methods_by_metrics,
    model_by_kind,
    overall,
    text_cells,
    text_headings,
)
from framework.evaluation.page import curve_image, write_page
from framework.evaluation.results import COUNTS, DRIVING, LOSS, MODEL, PERCEPTION, SIMULATION, Results
from framework.evaluation.scene_view import LEGEND, LegendEntry, ranked_drives, scene_views, shortened
from framework.evaluation.table import COLUMNS, TITLES, StageResults, evals, rows_of, shown_columns
from framework.scene.episode_picture import OTHER
from framework.scene.types import ALL

BEFORE, AFTER = "#f97316", "#2563eb"
EPISODE_LEGEND = (
    LegendEntry("before training", BEFORE),
    LegendEntry("after training", AFTER),
    LegendEntry("others, as recorded", OTHER, is_box=True),
)
MAX_REPLIES = 12
"""Rows of a table of answers."""
TILES = (
    ("drive", "ade", "constant velocity"),
    ("reason", "ade", "constant velocity"),
    (SIMULATION, "at_fault_collision", "constant velocity"),
    ("detect", "nds", PERCEPTION),
    ("answer", "accuracy", "majority"),
)
"""The figures at the head of each eval: section, metric and the baseline that the model must beat."""
NOTES = {
    "drive": "ADE and FDE: mean and final distance from the expert. Miss: FDE beyond 2 m. Comfort: within nuPlan's "
    "bounds throughout. An answer that did not parse is scored as the worst of the baselines on its scene.",
    SIMULATION: "Plans carried out among the other road users. PDM: NAVSIM's planning score, 0 to 1. A close call is a "
    "time to collision below a second. A plan that did not parse counts as the worst.",
    "detect": "nuScenes' metrics. mAP is over all ten classes, “mAP present” over those that occur. Boxes have no "
    "attributes here, so that the attribute error is 1 and NDS at most 0.9. “perception” is the scenes' own, copied.",
    "answer": "Exact match after normalisation. “majority” always gives its topic's commonest answer.",
    "caption": "Words shared with the expected caption.",
    LOSS: "Mean cross-entropy of a token of the expected answers, which the model is given up to that token.",
}
"""The note below each section's table."""
MAX_NARROW_COLUMNS = 2
"""Tables of at most so many columns stand side by side."""


@dataclass(frozen=True, slots=True)
class Tile:
    """A figure with the baseline's; `verdict` is better, worse or empty."""

    label: str
    value: str
    baseline: str = ""
    verdict: str = ""


@dataclass(frozen=True, slots=True)
class TableCard:
    """A titled table with a note below."""

    title: str
    grid: Grid
    note: str = ""


@dataclass(frozen=True, slots=True)
class EvalSummary:
    """An eval's tiles and its tables of stages and baselines."""

    title: str
    tiles: Sequence[Tile]
    wide: list[TableCard] = field(default_factory=list)
    narrow: list[TableCard] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class EvalDetails:
    """An eval's tables of the last stage."""

    title: str
    cards: Sequence[TableCard]


@dataclass(frozen=True, slots=True)
class Curve:
    """A metric over a run's steps."""

    title: str
    """What it is called."""
    metric: str
    """Its name in the run's metrics."""
    points: Sequence[tuple[int, float]]
    """(step, value), in order."""
    note: str = ""
    """What it tells, with its unit."""


@dataclass(frozen=True, slots=True)
class MetricChart:
    """A drawn metric; `image` is a data URI."""

    title: str
    metric: str
    image: str
    note: str


@dataclass(frozen=True, slots=True)
class EpisodeView:
    """What was driven in a scene before training and after it."""

    tag: str
    """Whether it became better or worse."""
    id: str
    """The scene."""
    facts: str
    """Its kind, and what was measured."""
    drawing: str
    """A moving SVG element in which all text is escaped."""


@dataclass(frozen=True, slots=True)
class Change:
    """What training changed in one section of an eval, on the same scenes."""

    title: str
    """The section and the eval."""
    grid: Grid
    """Figures before and after, with intervals."""


def write_report(
    path: Path,
    name: str,
    identity: Mapping[str, object],
    stages: StageResults,
    curves: Sequence[Curve],
    examples: Sequence[Example],
    changes: Sequence[Change] = (),
    episodes: Sequence[EpisodeView] = (),
) -> None:
    """Write the report of run `name` to `path`.

    Args:
        path: the HTML file; missing folders are created.
        name: the title.
        identity: what tells the run from others (code, seed, ...), shown below the title.
        stages: the results by stage and eval, the last stage last.
        curves: metrics over steps; those without points are left out.
        examples: the last stage's answers, from which scenes and samples of answers are chosen.
        changes: what training changed, by section of an eval.
        episodes: scenes that are driven otherwise after training.
    """
    last = list(stages.values())[-1] if stages else {}
    drives = ranked_drives(examples)
    unparsed = list(_unparsed(examples))
    write_page(
        path,
        "report.html.j2",
        title=name,
        identity=identity,
        evals=[_summary(stages, eval_name, last.get(eval_name, {})) for eval_name in evals(stages)],
        curves=[
            MetricChart(each.title, each.metric, curve_image(each.points), each.note) for each in curves if each.points
        ],
        changes=changes,
        episodes=episodes,
        episode_legend=EPISODE_LEGEND,
        drives=len(drives),
        legend=LEGEND,
        scenes=scene_views(examples, drives),
        details=[EvalDetails(_title(eval_name), list(_details(results))) for eval_name, results in last.items()],
        samples=Grid([*text_headings(["question", "expected", "answer"]), Heading("")], _samples(examples)),
        unparsed=Grid([Heading("scene"), *text_headings(["task", "answer"])], unparsed[:MAX_REPLIES]),
        unparsed_count=len(unparsed),
    )


def _title(key: str) -> str:
    """A recipe's key as a title: "held_out" -> "Held out"."""
    words = key.replace("_", " ")
    return words[:1].upper() + words[1:]


def _summary(stages: StageResults, eval_name: str, last: Results) -> EvalSummary:
    """Tiles of the `last` stage, and a table of stages and baselines for each section."""
    summary = EvalSummary(_title(eval_name), list(_tiles(last)))
    for section, title in TITLES.items():
        rows = rows_of(stages, eval_name, section)
        if not rows:
            continue
        baselines = [name for name in rows if name not in stages]
        count = next(f"{row[unit][ALL]:.0f} {unit}" for row in rows.values() for unit in COUNTS if unit in row)
        columns = shown_columns(rows, section)
        note = NOTES.get("drive" if section in DRIVING else section, "")
        card = TableCard(title, methods_by_metrics(count, columns, rows, baselines), note)
        (summary.narrow if len(columns) <= MAX_NARROW_COLUMNS else summary.wide).append(card)
    return summary


def _tiles(results: Results) -> Iterator[Tile]:
    for section, metric, baseline in TILES:
        methods = results.get(section, {})
        column = next(column for column in COLUMNS[section] if column.metric == metric)
        model, other = (overall(methods.get(method, {}), metric) for method in (MODEL, baseline))
        if model is None:
            continue
        unit = f" {column.unit}" if column.unit else ""
        versus, verdict = "", ""
        if other is not None:
            versus = f"{baseline}: {column.format(other)}{unit}"
            verdict = "" if model == other else "better" if (model > other) == column.higher_is_better else "worse"
        yield Tile(f"{TITLES[section]}: {column.label}", f"{column.format(model)}{unit}", versus, verdict)
    failures = [overall(methods.get(MODEL, {}), "parse_failure") for methods in results.values()]
    known = [failure for failure in failures if failure is not None]
    if known:
        yield Tile("Answers that did not parse", f"{100 * max(known):.1f} %", "the worst of the tasks")


def _details(results: Results) -> Iterator[TableCard]:
    """The last stage's results by scenario kind, detection by class, answers by topic."""
    for section, title in TITLES.items():
        methods = results.get(section, {})
        if MODEL in methods:
            yield TableCard(f"{title} by scenario kind", model_by_kind(section, methods))
    if "detect" in results:
        yield TableCard("Detection by class", detection_by_class(results["detect"]))
        yield TableCard("Detection by distance", detection_by_distance(results["detect"]))
    if "answer" in results:
        yield TableCard("Answers by topic", accuracy_by_topic(results["answer"]))


def _samples(examples: Sequence[Example]) -> list[Row]:
    """The first answered questions, with the expected answer and whether the model's matches it."""
    rows = []
    for example in examples:
        reply = example.replies.get("answer")
        if reply is not None and reply.question is not None:
            correct = is_correct(reply.answer, reply.question.answer)
            mark = Cell("✓", "right") if correct else Cell("✗", "wrong")
            texts = (reply.question.question, reply.question.answer, shortened(reply.answer))
            rows.append(Row([*text_cells(texts), mark]))
    return rows[:MAX_REPLIES]


def _unparsed(examples: Sequence[Example]) -> Iterator[Row]:
    """The answers that did not parse."""
    for example in examples:
        for task, reply in example.replies.items():
            if reply.decoded is None:
                yield Row([Cell(example.scene.id), *text_cells([task, shortened(reply.answer) or "(empty)"])])
