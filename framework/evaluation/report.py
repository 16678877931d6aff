"""The report of a run: one HTML file with tables, curves, pictures of scenes and answers, readable offline."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from framework.evaluation import page
from framework.evaluation.answers import is_correct
from framework.evaluation.baselines import constant_velocity
from framework.evaluation.detection import DISTANCES
from framework.evaluation.planning import PlanningScore
from framework.evaluation.slices import ALL, Sliced
from framework.evaluation.suite import DRIVING, MODEL, PERCEPTION, SIMULATION, Results
from framework.evaluation.table import COLUMNS, TITLES, Column, Stages, evals, rows_of, shown_columns
from framework.scene.picture import birds_eye, draw_on_camera
from framework.scene.types import DETECTION_CLASSES, Boxes, Camera, FloatArray, Question, Scene, Trajectory

EXPERT, PREDICTED, EXTRAPOLATED = "#22c55e", "#2563eb", "#f59e0b"
ANNOTATED, DETECTED = "#eab308", "#06b6d4"
MOST_PICTURED = 2
MOST_CAMERAS = 5
MOST_REPLIES = 12
LONGEST = 240
"""Characters of an answer that are shown."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What the model said in one task, and what it decodes to (None when it did not parse)."""

    answer: str
    decoded: Trajectory | Boxes | str | None
    question: Question | None = None


@dataclass(frozen=True, slots=True)
class Example:
    """A scene with what the model made of it, by task."""

    scene: Scene
    replies: Mapping[str, Reply] = field(default_factory=dict)

    def with_answer(
        self, task: str, answer: str, decoded: Trajectory | Boxes | str | None, question: Question | None = None
    ) -> Example:
        """This example with one more answer; give the `question` where the task is to answer one."""
        return replace(self, replies={**self.replies, task: Reply(answer, decoded, question)})

    def trajectory(self) -> Trajectory | None:
        """What it drove, at once or after thinking; None when no such answer parsed."""
        found = (self.replies[task].decoded for task in DRIVING if task in self.replies)
        return next((decoded for decoded in found if isinstance(decoded, Trajectory)), None)

    def boxes(self) -> Boxes | None:
        """What it detected."""
        reply = self.replies.get("detect")
        return reply.decoded if reply is not None and isinstance(reply.decoded, Boxes) else None


def write_report(
    path: Path,
    name: str,
    identity: Mapping[str, object],
    stages: Stages,
    curves: Mapping[str, Sequence[tuple[int, float]]],
    examples: Sequence[Example],
) -> None:
    """Write the report of run `name` to `path`.

    `identity` is what tells the run from others; `stages` the results by stage and examination, last stage last;
    `curves` are metrics as (step, value); `examples` the scenes to choose pictures and answers from, as the last stage
    answered them.
    """
    parts = [f"<header><h1>{page.text(name)}</h1>{page.identity(identity)}</header>"]
    last = list(stages.values())[-1] if stages else {}
    for examination in evals(stages):
        parts.append(f"<h2>{page.text(_spoken(examination))}</h2>{_tiles(last.get(examination, {}))}")
        parts += _comparisons(stages, examination)
    drawn = [page.card(_spoken(title), page.curve(title, points)) for title, points in curves.items() if points]
    if drawn:
        parts.append(f'<h2>Training</h2><div class="two">{"".join(drawn)}</div>')
    parts += _scenes(examples)
    for examination, results in last.items():
        parts += _details(results, _spoken(examination))
    parts += _answers(examples)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page.page(name, parts), encoding="utf-8")


def _spoken(name: str) -> str:
    """A key of the recipe as a title."""
    words = name.replace("_", " ")
    return words[:1].upper() + words[1:]


def _tiles(results: Results) -> str:
    """The figures one asks for first, each beside what it must beat."""
    tiles = []
    for section, metric, baseline in (
        ("drive", "ade", "constant velocity"),
        ("reason", "ade", "constant velocity"),
        (SIMULATION, "at_fault_collision", "constant velocity"),
        ("detect", "nds", PERCEPTION),
        ("answer", "accuracy", "majority"),
    ):
        column = next(column for column in COLUMNS[section] if column.metric == metric)
        ours, theirs = (_overall(results, section, method, metric) for method in (MODEL, baseline))
        if ours is None:
            continue
        unit = f" {column.unit}" if column.unit else ""
        beside, verdict = "", ""
        if theirs is not None:
            beside = f"{baseline}: {column.write(theirs)}{unit}"
            verdict = "" if ours == theirs else "better" if (ours > theirs) == column.high else "worse"
        tiles.append(page.tile(f"{TITLES[section]}: {column.label}", f"{column.write(ours)}{unit}", beside, verdict))
    failures = [_overall(results, section, MODEL, "parse_failure") for section in results]
    known = [failure for failure in failures if failure is not None]
    if known:
        tiles.append(page.tile("Answers that did not parse", f"{100 * max(known):.1f} %", "the worst of the tasks"))
    return f'<div class="tiles">{"".join(tiles)}</div>'


def _overall(results: Results, section: str, method: str, metric: str) -> float | None:
    return results.get(section, {}).get(method, {}).get(metric, {}).get(ALL)


def _comparisons(stages: Stages, examination: str) -> Iterator[str]:
    """A table of stages and baselines for each section, narrow ones side by side."""
    narrow = []
    for section, title in TITLES.items():
        rows = rows_of(stages, examination, section)
        if rows:
            baselines = [name for name in rows if name not in stages]
            counts = (f"{row[unit][ALL]:.0f} {unit}" for row in rows.values() for unit in UNITS if unit in row)
            columns = shown_columns(rows, section)
            made = page.card(title, page.comparison(next(counts), columns, rows, baselines), _footnote(section))
            if len(columns) > 2:
                yield made
            else:
                narrow.append(made)
    if narrow:
        yield f'<div class="two">{"".join(narrow)}</div>'


UNITS = ("scenes", "questions")
"""Metrics that say how many there were."""
FOOTNOTES = {
    "drive": "ADE and FDE: mean and final distance from the expert. Miss: FDE beyond 2 m. Comfort: within nuPlan's "
    "bounds throughout. An answer that did not parse is scored as the worst of the baselines on its scene.",
    SIMULATION: "Plans carried out among the other road users. PDM: NAVSIM's planning score, 0 to 1. A close call is a "
    "time to collision below a second. A plan that did not parse counts as the worst.",
    "detect": "nuScenes' metrics. mAP is over all ten classes, “mAP seen” over those that occur. Boxes have no "
    "attributes here, so that the attribute error is 1 and NDS at most 0.9. “perception” is the scenes' own, copied.",
    "answer": "Exact match after normalisation. “majority” always gives its topic's commonest answer.",
    "caption": "Words shared with the expected caption.",
}


def _footnote(section: str) -> str:
    note = FOOTNOTES.get("drive" if section in DRIVING else section)
    return f'<p class="note">{page.text(note)}</p>' if note else ""


def _details(results: Results, title: str) -> Iterator[str]:
    """The last stage by scenario kind, detection by class, answers by topic."""
    cards = []
    for section in TITLES:
        methods = results.get(section, {})
        ours = methods.get(MODEL)
        if ours is not None:
            cards.append(page.card(f"{TITLES[section]} by scenario kind", _by_kind(section, methods, ours)))
    if "detect" in results:
        cards.append(page.card("Average precision by class", _by_class(results["detect"])))
    if "answer" in results:
        cards.append(page.card("Answers by topic", _by_topic(results["answer"])))
    if cards:
        yield f"<h2>{page.text(title)} in detail</h2>"
        yield from cards


def _by_kind(section: str, methods: Mapping[str, Sliced], ours: Sliced) -> str:
    """The model's metrics in each kind, the first also of the baselines."""
    first, *others = shown_columns({MODEL: ours}, section)
    baselines = [(replace(first, unit=name), sliced) for name, sliced in methods.items() if name != MODEL]
    columns = [(first, ours), *baselines, *((column, ours) for column in others)]
    unit = next(name for name in UNITS if name in ours)
    return page.by_slice(columns, ours[unit], unit)


def _by_class(methods: Mapping[str, Sliced]) -> str:
    """AP at each distance and on average, the perception stack's beside."""
    ours, copied = methods.get(MODEL, {}), methods.get(PERCEPTION, {})
    precision = Column("ap", "AP", high=True)
    at_distances = [(f"AP ↑\n{distance:g} m", "") for distance in DISTANCES]
    headings = [("class", ""), *at_distances, ("mean AP ↑\nmodel", ""), ("mean AP ↑\nperception", "")]
    rows = []
    for name in DETECTION_CLASSES:
        if f"ap/{name}" in ours or f"ap/{name}" in copied:
            keys = [*(f"ap/{name}/{d:g}m" for d in DISTANCES), f"ap/{name}"]
            values = [*(ours.get(key, {}).get(ALL) for key in keys), copied.get(f"ap/{name}", {}).get(ALL)]
            rows.append(("", [(name.replace("_", " "), ""), *((precision.write(value), "") for value in values)]))
    return page.grid(headings, rows)


def _by_topic(methods: Mapping[str, Sliced]) -> str:
    column = Column("accuracy", "accuracy", share=True, high=True)
    ours, majority = methods.get(MODEL, {}), methods.get("majority", {})
    rows = [
        ("", [(key.partition("/")[2], ""), *((column.write(m.get(key, {}).get(ALL)), "") for m in (ours, majority))])
        for key in ours
        if key.startswith("accuracy/")
    ]
    return page.grid([("topic", ""), ("model ↑", ""), ("majority ↑", "")], rows)


def _scenes(examples: Sequence[Example]) -> Iterator[str]:
    """The best, the median and the worst drive by ADE, or the first scenes with detections; then scenes with cameras,
    where these have none.
    """
    score = PlanningScore()
    drives = [example for example in examples if any(task in example.replies for task in DRIVING)]
    order = sorted((score.judge(d.scene, d.trajectory())["ade"], index) for index, d in enumerate(drives))
    chosen: list[tuple[str, Example, float | None]] = []
    if order:
        places = {"best": order[0], "median": order[len(order) // 2], "worst": order[-1]}
        chosen = [(title, drives[index], ade) for title, (ade, index) in places.items()]
    else:
        seen = [example for example in examples if example.boxes() is not None][:3]
        chosen = [(f"scene {number}", example, None) for number, example in enumerate(seen, start=1)]
    if not any(example.scene.cameras for _, example, _ in chosen):
        pictured = [example for example in examples if example.scene.cameras][:MOST_PICTURED]
        chosen += [("pictured", example, None) for example in pictured]
    if chosen:
        ranked = f'<p class="note">The best, median and worst of {len(order)} drives by ADE.</p>' if order else ""
        yield f"<h2>Scenes</h2>{ranked}"
        yield _legend()
    yield from (_scene(title, example, ade) for title, example, ade in chosen)


def _legend() -> str:
    paths = {"expert": EXPERT, "predicted": PREDICTED, "constant velocity": EXTRAPOLATED}
    boxes = {"annotated": ANNOTATED, "detected": DETECTED}
    items = [f'<li><i style="color:{colour}"></i>{page.text(name)}</li>' for name, colour in paths.items()]
    items += [f'<li><i class="box" style="color:{colour}"></i>{page.text(name)}</li>' for name, colour in boxes.items()]
    return f'<ul class="legend">{"".join(items)}</ul>'


def _scene(title: str, example: Example, ade: float | None) -> str:
    """One scene from above and through its cameras, with what was said about it."""
    scene, predicted = example.scene, example.trajectory()
    paths: dict[str, tuple[str, FloatArray]] = {}
    if scene.history is not None and scene.future is not None:
        paths["constant velocity"] = (EXTRAPOLATED, constant_velocity(scene).states)
    if scene.future is not None:
        paths["expert"] = (EXPERT, scene.future.states)
    if predicted is not None:
        paths["predicted"] = (PREDICTED, predicted.states)
    speed = "" if scene.history is None else f" · {scene.history.states[-1, 3]:.1f} m/s"
    failed = " · the answer did not parse" if predicted is None and ade is not None else ""
    error = "" if ade is None else f" · ADE {ade:.2f} m"
    facts = f"{scene.kind.replace('_', ' ')} · command {scene.command}{speed}{error}{failed}"
    cameras = "".join(_camera(camera, example, paths) for camera in _front_first(scene.cameras))
    said = "".join(
        f'<p class="said"><b>{page.text(task)}</b> {page.text(_shortened(reply.answer))}</p>'
        for task, reply in example.replies.items()
        if task not in ("detect", "answer")
    )
    tag = f'<span class="tag {page.text(title)}">{page.text(title)}</span>'
    above = birds_eye(scene, paths, _boxes(example))
    return (
        f'<section class="card"><h3>{tag}{page.text(scene.id)}</h3><p class="facts">{page.text(facts)}</p>'
        f'<div class="scene"><div>{above}{said}</div><div class="cameras">{cameras}</div></div></section>'
    )


def _boxes(example: Example) -> list[tuple[str, Boxes]]:
    """Annotated and detected boxes in their colours."""
    found = (ANNOTATED, example.scene.boxes), (DETECTED, example.boxes())
    return [(colour, boxes) for colour, boxes in found if boxes is not None]


def _front_first(cameras: Sequence[Camera]) -> list[Camera]:
    """The camera that looks most forward first: the view that shows what is driven."""
    return sorted(cameras, key=lambda camera: -camera.extrinsic[0, 2])[:MOST_CAMERAS]


def _camera(camera: Camera, example: Example, paths: Mapping[str, tuple[str, FloatArray]]) -> str:
    picture = draw_on_camera(camera, _boxes(example), list(paths.values()))
    shown = page.image(picture, "image/jpeg", f"{camera.name} of {example.scene.id}")
    return f"<figure>{shown}<figcaption>{page.text(camera.name)}</figcaption></figure>"


def _answers(examples: Sequence[Example]) -> Iterator[str]:
    """Samples of answers beside the expected ones, then of what did not parse."""
    rows = []
    for example in examples:
        reply = example.replies.get("answer")
        if reply is not None and reply.question is not None:
            right = is_correct(reply.answer, reply.question.answer)
            mark = ("✓", "right") if right else ("✗", "wrong")
            cells = (reply.question.question, reply.question.answer, _shortened(reply.answer))
            rows.append(("", [*((cell, "text") for cell in cells), mark]))
    if rows:
        headings = [("question", "text"), ("expected", "text"), ("answer", "text"), ("", "")]
        yield f"<h2>Answers</h2>{page.card('Samples', page.grid(headings, rows[:MOST_REPLIES]))}"
    failed = [
        ("", [(example.scene.id, ""), (task, "text"), (_shortened(reply.answer) or "(empty)", "text")])
        for example in examples
        for task, reply in example.replies.items()
        if reply.decoded is None
    ]
    if failed:
        note = f'<p class="note">{len(failed)} answers; the first {min(len(failed), MOST_REPLIES)} of them.</p>'
        listed = page.grid([("scene", ""), ("task", "text"), ("answer", "text")], failed[:MOST_REPLIES])
        yield page.card("Answers that did not parse", note, listed)


def _shortened(answer: str) -> str:
    return answer if len(answer) <= LONGEST else f"{answer[:LONGEST]} …"
