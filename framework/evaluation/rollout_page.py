"""A page of rollouts: each prompt's scene with the plans of all its answers, their rewards and advantages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from framework.evaluation.grid import Cell, Grid, Heading, Row
from framework.evaluation.page import data_uri, write_page
from framework.evaluation.scene_view import ANNOTATED, EXPERT, CameraPicture, LegendEntry, scene_facts
from framework.scene.picture import birds_eye, draw_on_camera
from framework.scene.types import FloatArray, Scene, Trajectory

BETTER, WORSE = "#2563eb", "#ef4444"
LEGEND = (
    LegendEntry("expert", EXPERT),
    LegendEntry("better than the group", BETTER),
    LegendEntry("worse than the group", WORSE),
)


@dataclass(frozen=True, slots=True)
class RolloutView:
    """One answer of a group."""

    text: str
    """The generated text."""
    plan: Trajectory | None
    """The decoded trajectory; None when the text did not parse."""
    reward: float
    """The weighted sum of the components."""
    parts: Mapping[str, float]
    """{component: value}, unweighted."""
    advantage: float
    """The advantage that the answer was trained with."""


@dataclass(frozen=True, slots=True)
class GroupView:
    """All answers to one prompt."""

    scene: Scene
    """The scene that the prompt is about."""
    prompt: str
    """The prompt's text."""
    rollouts: Sequence[RolloutView]
    """The answers, in the order of sampling."""


def write_rollouts(path: Path, title: str, identity: Mapping[str, object], groups: Sequence[GroupView]) -> None:
    """Write the page of `groups` to `path`, readable offline; `identity` tells the run from others."""
    write_page(
        path, "rollouts.html.j2", title=title, identity=identity, legend=LEGEND, groups=[_values(g) for g in groups]
    )


def _values(group: GroupView) -> dict[str, Any]:
    """A group's values in the template."""
    scene = group.scene
    front = max(scene.cameras, key=lambda camera: float(camera.extrinsic[0, 2]), default=None)
    return {
        "id": scene.id,
        "facts": scene_facts(scene),
        "birds_eye": birds_eye(scene, dict(_paths(group)), [] if scene.boxes is None else [(ANNOTATED, scene.boxes)]),
        "cameras": [] if front is None else [CameraPicture(front.name, data_uri(draw_on_camera(front), "image/jpeg"))],
        "prompt": group.prompt,
        "grid": _grid(group),
    }


def _paths(group: GroupView) -> Iterator[tuple[str, tuple[str, FloatArray]]]:
    """The expert's path, then those of the answers by advantage, so that the best is on top."""
    if group.scene.future is not None:
        yield "expert", (EXPERT, group.scene.future.states)
    for number, rollout in sorted(enumerate(group.rollouts), key=lambda pair: pair[1].advantage):
        if rollout.plan is not None:
            yield f"answer {number}", (BETTER if rollout.advantage > 0 else WORSE, rollout.plan.states)


def _grid(group: GroupView) -> Grid:
    """Answers by reward, the best first; those without a plan are set in italics."""
    names = list(group.rollouts[0].parts) if group.rollouts else []
    headings = [Heading("answer", css="text"), Heading("reward"), Heading("advantage")]
    headings += [Heading(name.replace("_", " ")) for name in names]
    rows = []
    for rollout in sorted(group.rollouts, key=lambda rollout: -rollout.reward):
        shade = "right" if rollout.advantage > 0 else "wrong" if rollout.advantage < 0 else ""
        figures = [Cell(f"{rollout.reward:.3f}"), Cell(f"{rollout.advantage:+.3f}", shade)]
        figures += [Cell(f"{rollout.parts[name]:.3f}") for name in names]
        rows.append(Row([Cell(rollout.text, "text"), *figures], "" if rollout.plan is not None else "baseline"))
    return Grid(headings, rows)
