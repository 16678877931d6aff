"""A page of rollouts: each prompt's scene with the plans of all its answers, and what each was worth."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from framework.evaluation import page
from framework.scene.picture import birds_eye, draw_on_camera
from framework.scene.types import FloatArray, Scene, Trajectory

EXPERT, GOOD, BAD = "#22c55e", "#2563eb", "#ef4444"


@dataclass(frozen=True, slots=True)
class RolloutView:
    """One answer: its text and plan (None when it did not parse), its reward with the parts, unweighted, that made it,
    and the advantage it was trained with.
    """

    text: str
    plan: Trajectory | None
    reward: float
    parts: Mapping[str, float]
    advantage: float


@dataclass(frozen=True, slots=True)
class GroupView:
    """All answers to the `prompt` about `scene`."""

    scene: Scene
    prompt: str
    rollouts: Sequence[RolloutView]


def write_rollouts(path: Path, title: str, identity: Mapping[str, object], groups: Sequence[GroupView]) -> None:
    """Write the page of `groups` to `path`, readable offline; `identity` is what tells the run from others."""
    parts = [f"<header><h1>{page.text(title)}</h1>{page.identity(identity)}</header>", _legend()]
    parts += [_group(group) for group in groups]
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f"{path.name}.new")
    fresh.write_text(page.page(title, parts), encoding="utf-8")
    fresh.replace(path)


def _legend() -> str:
    colours = {"expert": EXPERT, "better than the group": GOOD, "worse than the group": BAD}
    items = [f'<li><i style="color:{colour}"></i>{page.text(name)}</li>' for name, colour in colours.items()]
    return f'<ul class="legend">{"".join(items)}</ul>'


def _group(group: GroupView) -> str:
    scene = group.scene
    above = birds_eye(scene, dict(_paths(group)), [] if scene.boxes is None else [("#eab308", scene.boxes)])
    front = max(scene.cameras, key=lambda camera: float(camera.extrinsic[0, 2]), default=None)
    seen = "" if front is None else page.image(draw_on_camera(front), "image/jpeg", f"{front.name} of {scene.id}")
    said = f'<p class="said"><b>prompt</b> {page.text(group.prompt)}</p>'
    return (
        f'<section class="card"><h3>{page.text(scene.id)}</h3>'
        f'<p class="facts">{page.text(scene.kind.replace("_", " "))} · command {page.text(scene.command)}</p>'
        f'<div class="scene"><div>{above}</div><div class="cameras">{seen}</div></div>{said}{_table(group)}</section>'
    )


def _paths(group: GroupView) -> Iterator[tuple[str, tuple[str, FloatArray]]]:
    """The expert's path, then those of the answers, the best last and so on top."""
    if group.scene.future is not None:
        yield "expert", (EXPERT, group.scene.future.states)
    for number, rollout in sorted(enumerate(group.rollouts), key=lambda pair: pair[1].advantage):
        if rollout.plan is not None:
            yield f"answer {number}", (GOOD if rollout.advantage > 0 else BAD, rollout.plan.states)


def _table(group: GroupView) -> str:
    names = list(group.rollouts[0].parts) if group.rollouts else []
    headings = [
        ("answer", "text"),
        ("reward", ""),
        ("advantage", ""),
        *((name.replace("_", " "), "") for name in names),
    ]
    rows = []
    for rollout in sorted(group.rollouts, key=lambda rollout: -rollout.reward):
        shade = "right" if rollout.advantage > 0 else "wrong" if rollout.advantage < 0 else ""
        figures = [(f"{rollout.reward:.3f}", ""), (f"{rollout.advantage:+.3f}", shade)]
        figures += [(f"{rollout.parts[name]:.3f}", "") for name in names]
        rows.append(("" if rollout.plan is not None else "baseline", [(rollout.text, "text"), *figures]))
    return page.grid(headings, rows)
