"""The scenes that a run drives most differently after training than before, as its report shows them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from framework.evaluation.compare import stage_rows
from framework.evaluation.examples import Example
from framework.evaluation.report import AFTER, BEFORE, EpisodeView
from framework.evaluation.results import SIMULATION
from framework.evaluation.scene_rows import DRIVEN, SceneRow
from framework.evaluation.scene_view import scene_facts
from framework.evaluation.table import StageResults, evals
from framework.scene.episode_picture import animated_episode

Pair = tuple[Example, SceneRow, SceneRow]
"""A scene after training, and what was measured of it before and after."""
JUDGES = ("reward", "planning_score")
"""Measures by which episodes are compared: the first that all have."""
MAX_BETTER, MAX_WORSE = 2, 1
"""Scenes that are shown, by whether they became better."""


def changed_episodes(folder: Path, stages: StageResults, examples: Sequence[Example]) -> list[EpisodeView]:
    """Views of the scenes whose episodes changed most between the first stage of the run in `folder` that has an eval
    and its last, the better ones first. `examples` are of the last stage; scenes that they do not show are left out.
    """
    shown = {example.scene.id: example for example in examples if example.driven is not None}
    for evaluator in evals(stages):
        having = [stage for stage, results in stages.items() if SIMULATION in results.get(evaluator, {})]
        if len(having) < 2:
            continue
        before, after = (
            {row["scene"]: row for row in stage_rows(folder, {evaluator: stage})[evaluator] if DRIVEN in row}
            for stage in (having[0], having[-1])
        )
        pairs = [(shown[scene], before[scene], after[scene]) for scene in after if scene in before and scene in shown]
        if views := list(_views([pair for pair in pairs if _is_of(pair[0], pair[2])])):
            return views
    return []


def _is_of(example: Example, row: SceneRow) -> bool:
    """Whether the row is of the example: another eval may have driven the same scene."""
    return example.driven is not None and example.driven.path() == row[DRIVEN]


def _views(pairs: Sequence[Pair]) -> Iterator[EpisodeView]:
    judge = next((name for name in JUDGES if all(_has(name, pair) for pair in pairs)), None)
    if judge is None:
        return

    def gain(pair: Pair) -> float:
        _, before, after = pair
        return float(after[SIMULATION][judge] - before[SIMULATION][judge])

    ranked = sorted(pairs, key=gain)
    better = [pair for pair in reversed(ranked) if gain(pair) > 0][:MAX_BETTER]
    worse = [pair for pair in ranked if gain(pair) < 0][:MAX_WORSE]
    for tag, chosen in (("better", better), ("worse", worse)):
        for pair in chosen:
            yield _view(tag, judge, *pair)


def _has(measure: str, pair: Pair) -> bool:
    return all(measure in row[SIMULATION] for row in pair[1:])


def _view(tag: str, judge: str, example: Example, before: SceneRow, after: SceneRow) -> EpisodeView:
    driven = example.driven
    assert driven is not None
    drives = {
        "before training": (BEFORE, np.array(before[DRIVEN], dtype=np.float64)),
        "after training": (AFTER, driven.ego),
    }
    figures = f"{judge.replace('_', ' ')} {before[SIMULATION][judge]:.2f} → {after[SIMULATION][judge]:.2f}"
    drawing = animated_episode(example.scene, drives, driven.others, driven.rate_hz)
    return EpisodeView(tag, example.scene.id, f"{scene_facts(example.scene)} · {figures}", drawing)
