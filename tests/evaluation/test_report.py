from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from framework.evaluation.compare import stage_changes
from framework.evaluation.detection_score import DetectionScore
from framework.evaluation.examples import Example
from framework.evaluation.grid import detection_by_distance
from framework.evaluation.report import Change, Curve, write_report
from framework.evaluation.suite import Suite
from framework.scene.types import Question, Trajectory
from framework.scene.world.generate import generate_scene
from tests.evaluation.scenes import straight

MISCHIEF = "<script>alert('x')</script>"


class Reader(HTMLParser):
    """Which tags there are, where they load from, and whether every one is closed."""

    VOID = frozenset({"meta", "img", "br", "rect", "polygon", "polyline", "circle", "path"})

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.sources: list[str] = []
        self.open: list[str] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href", "srcset")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> str:
    suite, examples = Suite(), []
    for seed in range(5):
        scene = generate_scene(seed)
        predicted = None if seed == 4 else Trajectory(straight(speed=2.0 * seed))
        question = Question(f"{MISCHIEF}?", "yes", "lead")
        suite.update(scene, "drive", MISCHIEF, predicted)
        suite.update(scene, "detect", "[]", scene.boxes)
        suite.update(scene, "answer", MISCHIEF, question=question)
        example = Example(scene).with_answer("drive", MISCHIEF, predicted).with_answer("detect", "[]", scene.boxes)
        examples.append(example.with_answer("answer", MISCHIEF, MISCHIEF, question))
    results = suite.compute()
    stages = {"untrained": {"held_out": results}, "broad": {"held_out": results}}
    curves = [
        Curve("Loss", "loss", [(step, 1.0 / step) for step in range(1, 100)], MISCHIEF),
        Curve("Empty", "empty", []),
    ]
    changes = [Change(title, grid) for title, grid in stage_changes(Path(), stages).items()]
    path = tmp_path_factory.mktemp("report") / "new" / "report.html"
    write_report(path, f"run {MISCHIEF}", {"seed": 0, "code": MISCHIEF}, stages, curves, examples, changes)
    return path.read_text(encoding="utf-8")


def test_the_page_is_whole_and_loads_nothing(report: str) -> None:
    reader = Reader()
    reader.feed(report)
    assert reader.open == []
    assert reader.sources
    assert all(source.startswith("data:image/") for source in reader.sources)
    assert not re.search(r"url\(|@import", report)
    assert not {"script", "link", "iframe"} & set(reader.tags)


@pytest.mark.attack("folder", "HTML in answers, names and figures of a report", "text")
def test_mischief_is_text(report: str) -> None:
    reader = Reader()
    reader.feed(report)
    assert "<script" not in report
    assert sum(MISCHIEF in text for text in reader.texts) > 5


def test_best_median_and_worst_are_pictured(report: str) -> None:
    assert report.count('<svg class="birds-eye"') == 3
    for title in ("best", "median", "worst"):
        assert f'<span class="tag {title}">' in report
    assert report.count("data:image/jpeg") == 9
    assert report.count("data:image/svg+xml") == 1
    assert "the answer did not parse" in report


def test_the_first_stage_stands_next_to_the_last(report: str) -> None:
    before, _, after = report.partition("<h2>Before and after</h2>")[2].partition("<h2>Training</h2>")
    for figure in ("Driving, held_out", "before", "after", "+0 m", "within noise"):
        assert figure in before
    assert "loss over steps" in after


def test_tables_are_there(report: str) -> None:
    for title in (
        "Driving by scenario kind",
        "Detection by class",
        "Detection by distance",
        "Answers by topic",
        "Samples",
    ):
        assert f"<h3>{title}</h3>" in report
    assert "constant velocity" in report
    assert "Answers that did not parse" in report


def test_a_report_of_nothing_is_still_a_page(tmp_path: Path) -> None:
    write_report(tmp_path / "report.html", "empty", {}, {}, [], [])
    assert "<h1>empty</h1>" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_detection_alone_is_pictured(tmp_path: Path) -> None:
    scene = generate_scene(1)
    write_report(tmp_path / "r.html", "boxes", {}, {}, [], [Example(scene).with_answer("detect", "", scene.boxes)])
    assert (tmp_path / "r.html").read_text(encoding="utf-8").count('<svg class="birds-eye"') == 1


def test_perfect_boxes_are_perfect_at_every_distance_that_has_any() -> None:
    metric = DetectionScore()
    for seed in range(5):
        scene = generate_scene(seed)
        metric.update(scene, scene.boxes)
    grid = detection_by_distance({"model": metric.compute()})
    shown = {row.cells[0].text: [cell.text for cell in row.cells[1:]] for row in grid.rows}
    assert list(shown) == ["0 to 15 m", "15 to 30 m", "30 to 50 m"]
    dash = "\N{EN DASH}"
    assert all(cells[:4] == ["1.00", dash, "0.00", "0.00"] or set(cells) == {dash} for cells in shown.values())
    assert any(cells[0] == "1.00" for cells in shown.values())
