"""Scenes as pages show them: drawn from above, through their cameras, with a line of facts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from framework.evaluation.baselines import constant_velocity
from framework.evaluation.examples import Example
from framework.evaluation.page import data_uri
from framework.evaluation.planning import TrajectoryScore
from framework.evaluation.results import DRIVING
from framework.scene.picture import birds_eye, draw_on_camera
from framework.scene.types import Boxes, Camera, FloatArray, Scene

EXPERT, PREDICTED, EXTRAPOLATED = "#22c55e", "#2563eb", "#f59e0b"
ANNOTATED, DETECTED = "#eab308", "#06b6d4"
MAX_CAMERAS = 5
MAX_UNRANKED = 3
"""Scenes with detections that are shown where nothing was driven."""
MAX_WITH_CAMERAS = 2
"""Scenes with cameras that are added where those chosen have none."""
MAX_CHARACTERS = 240
"""Longer answers are cut."""

Paths = Mapping[str, tuple[str, FloatArray]]
"""{name: (colour, positions `(time, 2+)`)}, in the order of drawing."""


@dataclass(frozen=True, slots=True)
class LegendEntry:
    """A colour's meaning."""

    label: str
    colour: str
    is_box: bool = False
    """Whether the colour outlines boxes; else it draws a path."""


LEGEND = (
    LegendEntry("expert", EXPERT),
    LegendEntry("predicted", PREDICTED),
    LegendEntry("constant velocity", EXTRAPOLATED),
    LegendEntry("annotated", ANNOTATED, is_box=True),
    LegendEntry("detected", DETECTED, is_box=True),
)


@dataclass(frozen=True, slots=True)
class CameraPicture:
    """A camera's picture, as a data URI."""

    name: str
    image: str


@dataclass(frozen=True, slots=True)
class SceneView:
    """A scene with its answers."""

    tag: str
    """Why the scene is shown: best, median, worst, ..."""
    id: str
    facts: str
    birds_eye: str
    """An SVG element in which all text is escaped."""
    cameras: Sequence[CameraPicture]
    answers: Sequence[tuple[str, str]]
    """(task, answer) of the tasks that answer in words."""


def ranked_drives(examples: Sequence[Example]) -> list[tuple[float, Example]]:
    """(ADE in m, example) of the examples that were driven, best first."""
    score = TrajectoryScore()
    drives = [example for example in examples if any(task in example.replies for task in DRIVING)]
    order = sorted((score.judge(one.scene, one.trajectory())["ade"], index) for index, one in enumerate(drives))
    return [(ade, drives[index]) for ade, index in order]


def scene_views(examples: Sequence[Example], drives: Sequence[tuple[float, Example]]) -> list[SceneView]:
    """The scenes that a report shows.

    These are the best, median and worst of `drives`, or without drives the first examples with detections. Where none
    of these has cameras, examples with cameras follow.
    """
    chosen: list[tuple[str, Example, float | None]] = []
    if drives:
        ranks = {"best": 0, "median": len(drives) // 2, "worst": -1}
        chosen = [(tag, drives[rank][1], drives[rank][0]) for tag, rank in ranks.items()]
    else:
        detected = [example for example in examples if example.boxes() is not None][:MAX_UNRANKED]
        chosen = [(f"scene {number}", example, None) for number, example in enumerate(detected, start=1)]
    if not any(example.scene.cameras for _, example, _ in chosen):
        pictured = [example for example in examples if example.scene.cameras][:MAX_WITH_CAMERAS]
        chosen += [("pictured", example, None) for example in pictured]
    return [scene_view(tag, example, ade) for tag, example, ade in chosen]


def scene_facts(scene: Scene) -> str:
    """A scene's kind and command."""
    return f"{scene.kind.replace('_', ' ')} · command {scene.command}"


def shortened(answer: str) -> str:
    """`answer`, cut after `MAX_CHARACTERS`."""
    return answer if len(answer) <= MAX_CHARACTERS else f"{answer[:MAX_CHARACTERS]} …"


def scene_view(tag: str, example: Example, ade: float | None) -> SceneView:
    """A scene with its answers, drawn; `ade` (m) is told where it is known, `tag` says why the scene is shown."""
    scene, paths, boxes = example.scene, _paths(example), _boxes(example)
    facts = [scene_facts(scene)]
    if scene.history is not None:
        facts.append(f"{scene.history.states[-1, 3]:.1f} m/s")
    if ade is not None:
        facts.append(f"ADE {ade:.2f} m")
        if example.trajectory() is None:
            facts.append("the answer did not parse")
    return SceneView(
        tag=tag,
        id=scene.id,
        facts=" · ".join(facts),
        birds_eye=birds_eye(scene, paths, boxes),
        cameras=[_camera_view(camera, boxes, paths) for camera in front_first(scene.cameras)],
        answers=[
            (task, shortened(reply.answer))
            for task, reply in example.replies.items()
            if task not in ("detect", "answer")
        ],
    )


def _paths(example: Example) -> Paths:
    scene, predicted = example.scene, example.trajectory()
    paths: dict[str, tuple[str, FloatArray]] = {}
    if scene.history is not None and scene.future is not None:
        paths["constant velocity"] = (EXTRAPOLATED, constant_velocity(scene).states)
    if scene.future is not None:
        paths["expert"] = (EXPERT, scene.future.states)
    if predicted is not None:
        paths["predicted"] = (PREDICTED, predicted.states)
    return paths


def _boxes(example: Example) -> list[tuple[str, Boxes]]:
    """Annotated and detected boxes with their colours."""
    pairs = (ANNOTATED, example.scene.boxes), (DETECTED, example.boxes())
    return [(colour, boxes) for colour, boxes in pairs if boxes is not None]


def front_first(cameras: Sequence[Camera]) -> list[Camera]:
    """The cameras by how far forward they look: the first shows what is driven."""
    return sorted(cameras, key=lambda camera: -camera.extrinsic[0, 2])[:MAX_CAMERAS]


def _camera_view(camera: Camera, boxes: Sequence[tuple[str, Boxes]], paths: Paths) -> CameraPicture:
    return CameraPicture(camera.name, data_uri(draw_on_camera(camera, boxes, list(paths.values())), "image/jpeg"))
