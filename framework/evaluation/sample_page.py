"""A page of samples as a model gets them: what the cameras show, what is annotated, and which tokens are learned."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from PIL import Image

from framework.evaluation.page import data_uri, write_page
from framework.evaluation.scene_view import ANNOTATED, DETECTED, EXPERT, CameraPicture, LegendEntry, scene_facts
from framework.scene.batch import IGNORE_INDEX
from framework.scene.picture import birds_eye, draw_on_camera
from framework.scene.types import Boxes, Scene

LEARNED = "#bbf7d0"
LEGEND = (
    LegendEntry("expert", EXPERT),
    LegendEntry("annotated", ANNOTATED, is_box=True),
    LegendEntry("perceived", DETECTED, is_box=True),
    LegendEntry("learned", LEARNED, is_box=True),
)
FIELDS = ("cameras", "lidar", "radar", "boxes", "history", "future", "questions", "caption", "thought", "dialogue")
"""Fields that tasks need, and that a scene may lack."""
WIDTH = 640
"""Pixels of a camera's picture; smaller images are enlarged, so that boxes on them can be told."""
RUN = 4
"""So many equal tokens in a row, as of an image, are written as one with their number."""


@dataclass(frozen=True, slots=True)
class Span:
    """Neighbouring tokens of a sample as text."""

    text: str
    """What they spell; placeholders that repeat are counted."""
    learned: bool
    """Whether the loss counts them."""


@dataclass(frozen=True, slots=True)
class TaskSample:
    """A scene as a sample of one task."""

    task: str
    """The task's name in the recipe."""
    spans: Sequence[Span]
    """All its tokens, in order."""
    tokens: int
    """Their number."""
    learned: int
    """How many of them the loss counts."""


@dataclass(frozen=True, slots=True)
class SceneSamples:
    """A scene with its samples."""

    scene: Scene
    """The scene."""
    images: Mapping[str, Image.Image]
    """{camera or medium: its newest image at the size that the model gets}."""
    samples: Sequence[TaskSample]
    """A sample for each task that the scene supports."""
    refused: Mapping[str, str]
    """{task: why there is no sample of it}."""
    unsupported: Sequence[str] = ()
    """Tasks that need what the scene lacks."""


def spans(ids: Sequence[int], labels: Sequence[int], tokenizer: Any) -> list[Span]:
    """The tokens `ids` as text, divided where learning begins or ends; `labels` say `IGNORE_INDEX` for what is not
    learned.
    """
    pairs = groupby(zip(ids, labels, strict=True), key=lambda pair: pair[1] != IGNORE_INDEX)
    return [Span(_text([token for token, _ in part], tokenizer), learned) for learned, part in pairs]


def _text(ids: Sequence[int], tokenizer: Any) -> str:
    texts: list[str] = []
    plain: list[int] = []

    def flush() -> None:
        texts.append(tokenizer.decode(plain, skip_special_tokens=False))
        plain.clear()

    for token, run in groupby(ids):
        count = len(list(run))
        if count < RUN:
            plain.extend([token] * count)
        else:
            flush()
            texts.append(f"{tokenizer.decode([token], skip_special_tokens=False)} × {count} ")
    flush()
    return "".join(texts)


def write_samples(path: Path, title: str, identity: Mapping[str, object], scenes: Sequence[SceneSamples]) -> None:
    """Write the page of `scenes` to `path`, readable offline; `identity` says what they are of."""
    cards = [_card(each) for each in scenes]
    write_page(path, "samples.html.j2", title=title, identity=identity, legend=LEGEND, scenes=cards)


def _card(each: SceneSamples) -> dict[str, Any]:
    """A scene's values in the template."""
    scene, boxes = each.scene, _boxes(each.scene)
    has_ground = scene.dialogue is None
    paths = {} if scene.future is None else {"expert": (EXPERT, scene.future.states)}
    return {
        "id": scene.id,
        "facts": scene_facts(scene) if has_ground else scene.kind,
        "birds_eye": birds_eye(scene, paths, boxes) if has_ground else "",
        "cameras": [
            CameraPicture(f"{name}, {image.width} × {image.height}", _picture(each, name, boxes))
            for name, image in each.images.items()
        ],
        "samples": each.samples,
        "refused": each.refused,
        "unsupported": ", ".join(each.unsupported),
        "lacks": ", ".join(name for name in FIELDS if getattr(scene, name) in (None, ())),
    }


def _boxes(scene: Scene) -> list[tuple[str, Boxes]]:
    pairs = (ANNOTATED, scene.boxes), (DETECTED, scene.perception)
    return [(colour, boxes) for colour, boxes in pairs if boxes is not None]


def _picture(each: SceneSamples, name: str, boxes: Sequence[tuple[str, Boxes]]) -> str:
    """The image that the model gets of a medium, or of a camera with boxes and path drawn on it."""
    image = each.images[name]
    camera = next((one for one in each.scene.cameras if one.name == name), None)
    if camera is not None:
        future = each.scene.future
        paths = [] if future is None else [(EXPERT, future.states)]
        return data_uri(draw_on_camera(camera, boxes, paths, WIDTH, image), "image/jpeg")
    encoded = io.BytesIO()
    image.convert("RGB").save(encoded, "JPEG", quality=90)
    return data_uri(encoded.getvalue(), "image/jpeg")
