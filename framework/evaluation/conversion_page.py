"""The page of a conversion: what was written, what was dropped, how the ego drives, and some records as pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from framework.evaluation.page import CURVE_COLOUR, chart, chart_image, data_uri, write_page
from framework.evaluation.scene_view import ANNOTATED, EXPERT, LegendEntry, front_first, scene_facts
from framework.scene.picture import birds_eye, draw_on_camera
from framework.scene.types import Scene, SceneError

LEGEND = (LegendEntry("expert", EXPERT), LegendEntry("annotated", ANNOTATED, is_box=True))
MOST_ROWS = 60
"""Rows of a table of counts; the others are one row."""
MOST_SKIPPED = 100
"""Skipped records that are listed."""


def write_conversion(path: Path, title: str, facts: Mapping[str, Any], scenes: Sequence[Scene]) -> None:
    """Write the page of a conversion to `path`, readable offline.

    Args:
        path: The page.
        title: Its heading.
        facts: The manifest of the shards, with `records_per_s` (None: not measured) and `widths`, the width of each
            histogram's bins.
        scenes: Records to show.
    """
    tables = {
        "Kinds": facts["kinds"],
        "Datasets": facts["datasets"],
        "Records with": facts["parts"],
        "Boxes by class": facts["classes"],
        "Left out: sensors, frames and others": facts["dropped"],
        "Left out: annotations without a class of ours": facts["unmapped"],
    }
    write_page(
        path,
        "conversion.html.j2",
        title=title,
        identity={"schema": facts["schema"]},
        tiles=_tiles(facts),
        tasks=_tasks(facts),
        tables={name: _rows(counts) for name, counts in tables.items() if counts},
        histograms=[
            (name, _bars(counts, facts["widths"][name], name)) for name, counts in facts["histograms"].items() if counts
        ],
        failed=facts["failed"],
        skipped=facts["skipped"][:MOST_SKIPPED],
        more_skipped=max(0, len(facts["skipped"]) - MOST_SKIPPED),
        legend=LEGEND,
        scenes=[_card(scene) for scene in scenes],
    )


def _tiles(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    rate = facts["records_per_s"]
    return [
        ("records", f"{facts['records']:,}"),
        ("skipped", f"{len(facts['skipped']):,}"),
        ("failed parts", f"{len(facts['failed']):,}"),
        ("records/s", "resumed" if rate is None else f"{rate:,.1f}"),
    ]


def _tasks(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the table of records by split and task."""
    splits = sorted({**facts["splits"], **facts["tasks"]})
    names = sorted({task for of in facts["tasks"].values() for task in of})
    rows = [
        [split or "unknown", facts["splits"].get(split, ""), *(facts["tasks"].get(split, {}).get(n, 0) for n in names)]
        for split in splits
    ]
    return {"names": names, "rows": rows}


def _rows(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    ordered = sorted(counts.items(), key=lambda item: -item[1])
    rest = ordered[MOST_ROWS:]
    return [*ordered[:MOST_ROWS], *([(f"{len(rest)} others", sum(count for _, count in rest))] if rest else [])]


def _bars(counts: Mapping[str, int], width: float, label: str) -> str:
    """A histogram drawn as SVG, as a data URI; `counts` are by the lower edges of bins of one width."""
    axes = chart(label, "records")
    edges = [float(edge) for edge in counts]
    axes.bar(edges, list(counts.values()), width=width, align="edge", color=CURVE_COLOUR, edgecolor="white")
    axes.xaxis.grid(visible=False)
    return chart_image(axes)


def _card(scene: Scene) -> dict[str, Any]:
    paths = {} if scene.future is None else {"expert": (EXPERT, scene.future.states)}
    boxes = [] if scene.boxes is None else [(ANNOTATED, scene.boxes)]
    has_ground = scene.dialogue is None
    cameras = []
    for camera in front_first(scene.cameras):
        try:
            picture = data_uri(draw_on_camera(camera, boxes, list(paths.values())), "image/jpeg")
        except SceneError:  # its image is damaged, which training counts
            continue
        cameras.append((camera.name, picture))
    return {
        "id": scene.id,
        "facts": scene_facts(scene) if has_ground else scene.kind,
        "birds_eye": birds_eye(scene, paths, boxes) if has_ground else "",
        "cameras": cameras,
        "turns": [] if scene.dialogue is None else [(t.role, _said(t.parts)) for t in scene.dialogue.turns],
    }


def _said(parts: Sequence[object]) -> str:
    """The text of a turn, with a mark for each medium."""
    return "".join(part if isinstance(part, str) else f"[medium {part}]" for part in parts)
