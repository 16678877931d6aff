"""What an evaluation measured of each scene, as a file of JSON lines: two runs are compared scene by scene.

    {"of": {"step": 100, "weights": "0123...", ...}, "scenes": 84}
    {"scene": "curve-17", "kind": "curve", "drive": {"count": 1, "ade": 1.25, ...}, "answer": {"count": 8, ...}}

The first line says which results the rows belong to. The file is written whole, so a restart repeats no row. Detection
has none but its failures: its score is of all scenes together.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from framework.evaluation.examples import Example
from framework.recipe.credentials import masked
from framework.run.files import read_records, write_text
from framework.run.layout import scenes_file

SceneRow = dict[str, Any]
"""The file's row of one scene: `scene`, `kind`, and for each section the means over the scene's `count` answers."""
SceneValues = dict[str, tuple[float, float]]
"""By scene a measure, and the number of answers that it is the mean of."""
DRIVEN = "driven"
"""The path that the model drove, `[[x, y, heading], ...]` (m, rad); absent where no simulator carried anything out."""
COUNT = "count"
"""The number of answers, next to a section's measures."""


def scene_rows(examples: Iterable[Example]) -> list[SceneRow]:
    """The rows of the examples that were measured."""
    rows = []
    for example in examples:
        sections = {section: _means(list(answers.values())) for section, answers in example.measures.items()}
        driven = {} if example.driven is None else {DRIVEN: example.driven.path()}
        if sections:
            rows.append({"scene": example.scene.id, "kind": example.scene.kind, **sections, **driven})
    return rows


def _means(answers: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Means over the answers that know a measure; one that none knows is left out."""
    means: dict[str, float] = {COUNT: len(answers)}
    for name in dict.fromkeys(name for answer in answers for name in answer):
        known = [answer[name] for answer in answers if not math.isnan(answer.get(name, math.nan))]
        if known:
            means[name] = sum(known) / len(known)
    return means


def write_scene_rows(folder: Path, stage: str, evaluator: str, of: Mapping[str, Any], rows: Sequence[SceneRow]) -> None:
    """Write the rows of `evaluator` after `stage`, which belong to the results `of` some weights. Of rows of one scene
    the first counts.
    """
    by_scene: dict[str, SceneRow] = {}
    for row in rows:
        by_scene.setdefault(row["scene"], row)
    lines = [{"of": dict(of), "scenes": len(by_scene)}, *(by_scene[name] for name in sorted(by_scene))]
    file = scenes_file(folder, stage, evaluator)
    file.parent.mkdir(exist_ok=True)
    write_text(file, masked("".join(f"{json.dumps(line, ensure_ascii=False)}\n" for line in lines)))


def read_scene_rows(folder: Path, stage: str, evaluator: str, of: Mapping[str, Any]) -> list[SceneRow]:
    """The rows of the results `of` these weights; none where the file is missing, cut, damaged, or of other results."""
    head, *rows = read_records(scenes_file(folder, stage, evaluator)) or [{}]
    whole = head.get("scenes") == len(rows) and all(isinstance(row.get("scene"), str) for row in rows)
    return rows if whole and head.get("of") == of else []


def values_of(rows: Iterable[SceneRow], section: str, metric: str) -> SceneValues:
    """The measure `metric` of `section` by scene."""
    sections = ((row["scene"], row.get(section, {})) for row in rows)
    return {scene: (found[metric], found.get(COUNT, 1)) for scene, found in sections if metric in found}
