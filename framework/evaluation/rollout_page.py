"""A page of rollouts: each prompt's scene with the plans of all its answers, their rewards and advantages."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from framework.evaluation.grid import Cell, Grid, Heading, Row
from framework.evaluation.page import data_uri, write_page
from framework.evaluation.scene_view import ANNOTATED, EXPERT, CameraPicture, LegendEntry, scene_facts
from framework.scene.picture import birds_eye, draw_on_camera
from framework.scene.types import Camera, FloatArray, Scene, Trajectory

MAX_CAMERA_PATHS = 3
"""Paths that a camera's picture shows."""
BETTER, WORSE = "#2563eb", "#ef4444"
SURE, LIKELY, OPEN = 0.9, 0.5, 0.1
"""Probabilities above which a token was sure, likely, or one of several; below, it was unlikely."""
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
    tokens: Sequence[tuple[str, float]] = ()
    """The answer's tokens with the log-probabilities (nats) of sampling them."""


@dataclass(frozen=True, slots=True)
class ShownAnswer:
    """An answer, token by token."""

    name: str
    """Its place in the group, with its reward."""
    tokens: Sequence[tuple[str, str]]
    """Text and style of each token."""


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
        "cameras": [] if front is None else [_camera_view(front, group)],
        "prompt": group.prompt,
        "answers": list(_shown_answers(group)),
        "grid": _grid(group),
    }


def _camera_view(front: Camera, group: GroupView) -> CameraPicture:
    """The picture of the camera with the paths of the expert, the worst and the best answer."""
    paths = list(dict(_paths(group)).values())
    chosen = paths if len(paths) <= MAX_CAMERA_PATHS else [paths[0], paths[1], paths[-1]]
    return CameraPicture(front.name, data_uri(draw_on_camera(front, paths=chosen), "image/jpeg"))


def _shown_answers(group: GroupView) -> Iterator[ShownAnswer]:
    """The answers token by token, the best first; as a whole where their tokens are not known."""
    for place, rollout in enumerate(_ranked(group), start=1):
        tokens = rollout.tokens or [(rollout.text, 0.0)]
        yield ShownAnswer(f"{place}, reward {rollout.reward:.3f}", [(text, _style(prob)) for text, prob in tokens])


def _style(logprob: float) -> str:
    """The style of a token by the log-probability (nats) of sampling it."""
    probability = math.exp(logprob)
    bounds = {"": SURE, "likely": LIKELY, "open": OPEN}
    return next((style for style, bound in bounds.items() if probability >= bound), "unlikely")


def _paths(group: GroupView) -> Iterator[tuple[str, tuple[str, FloatArray]]]:
    """The expert's path, then those of the answers by advantage, so that the best is on top."""
    if group.scene.future is not None:
        yield "expert", (EXPERT, group.scene.future.states)
    for number, rollout in sorted(enumerate(group.rollouts), key=lambda pair: pair[1].advantage):
        if rollout.plan is not None:
            yield f"answer {number}", (BETTER if rollout.advantage > 0 else WORSE, rollout.plan.states)


def _ranked(group: GroupView) -> list[RolloutView]:
    return sorted(group.rollouts, key=lambda rollout: -rollout.reward)


def _grid(group: GroupView) -> Grid:
    """Answers by reward, the best first; those without a plan are set in italics. Parts of the reward that are 0 for
    the whole group are left out.
    """
    ranked = _ranked(group)
    names = [name for name in (ranked[0].parts if ranked else ()) if any(rollout.parts[name] for rollout in ranked)]
    headings = [Heading("answer"), Heading("plan", css="text"), Heading("reward"), Heading("advantage")]
    headings += [Heading(name.replace("_", " ")) for name in names]
    rows = []
    for place, rollout in enumerate(ranked, start=1):
        shade = "right" if rollout.advantage > 0 else "wrong" if rollout.advantage < 0 else ""
        figures = [Cell(f"{rollout.reward:.3f}"), Cell(f"{rollout.advantage:+.3f}", shade)]
        figures += [Cell(f"{rollout.parts[name]:.3f}") for name in names]
        plan = Cell(_in_words(rollout.plan), "text")
        rows.append(Row([Cell(str(place)), plan, *figures], "" if rollout.plan is not None else "baseline"))
    return Grid(headings, rows)


def _in_words(plan: Trajectory | None) -> str:
    """Where a plan leads: "32.1 m ahead, 0.8 m left, ends at 5.0 m/s"."""
    if plan is None:
        return "none: the answer does not parse"
    ahead, left, _, speed = plan.states[-1]
    side = "left" if left >= 0 else "right"
    return f"{ahead:.1f} m ahead, {abs(left):.1f} m {side}, ends at {speed:.1f} m/s"
