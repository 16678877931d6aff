"""Shows a source's samples as the model gets them, on a page: the verb `show-data`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from framework.data.pipeline import DataPipeline
from framework.data.render.chat import ChatRenderer
from framework.data.shards.reader import ShardReader, open_reader
from framework.evaluation.rerun_recording import is_installed, write_recording
from framework.evaluation.sample_page import SceneSamples, TaskSample, spans, write_samples
from framework.model.language_action import placeholder
from framework.recipe.composition import Composition
from framework.recipe.instantiate import instantiate
from framework.recipe.problem import Origin, Problem, RecipeError, dotted, nearest
from framework.scene.batch import IGNORE_INDEX
from framework.scene.dialogue import Medium
from framework.scene.types import Camera, Scene, SceneError

SCENES = 12
"""Scenes that a page shows unless it is told how many."""


def show_data(composition: Composition, source: str, scenes: int, page: Path, rrd: Path | None = None) -> str:
    """Write the `page` of some `scenes` from all over the source `source` of a recipe, and a recording of them for
    Rerun to `rrd`. Returns what it shows, as text.

    The recipe's data and backbone render them; every task that a scene supports gives a sample. Raises `RecipeError`
    for a source that there is not, or none of whose records can be read, and for `rrd` without the extra `rerun`.
    """
    if rrd is not None and not is_installed():
        raise RecipeError([Problem(Origin("command line"), "rrd", "Rerun is not installed; install the extra `rerun`")])
    names = [str(name) for name in composition.tree.get("sources", {})]
    if source not in names:
        message = f"there is no source {source}; there are: {', '.join(names)}"
        raise RecipeError([Problem(Origin("command line"), "source", message, nearest(source, names))])
    key = ("sources", source)
    data: DataPipeline = instantiate(composition, ("task", "data"), inputs=False)
    backbone = instantiate(composition, ("task", "model", "backbone"), inputs=False)
    tokens = [placeholder(name) for name in data.sensors] + data.special_tokens
    renderer = data.renderer(backbone.offline_processor(tokens))
    try:
        reader = open_reader(*instantiate(composition, key, inputs=False).location())
        unreadable: Counter[str] = Counter()
        shown = [_samples(scene, data, renderer) for scene in _spread(reader, scenes, unreadable)]
    except (SceneError, OSError) as error:
        raise RecipeError([Problem(composition.origin(key), dotted(key), str(error))]) from error
    if not shown:
        message = f"none of its records can be read: {', '.join(unreadable) or 'it has none'}"
        raise RecipeError([Problem(composition.origin(key), dotted(key), message)])
    total = int(reader.cache.index.samples.sum())
    write_samples(page, f"Samples of {source}", _identity(composition, shown, total), shown)
    lines = [f"{len(shown)} of {total} scenes of {source}", *_summary(shown)]
    lines += [f"unreadable: {reason}: {count}" for reason, count in unreadable.items()]
    lines.append(f"page  {page}")
    if rrd is not None:
        write_recording(rrd, source, [each.scene for each in shown])
        lines.append(f"recording  {rrd}")
    return "\n".join(lines)


def _spread(reader: ShardReader, count: int, unreadable: Counter[str]) -> Iterator[Scene]:
    """Yields `count` scenes evenly from the first record to the last; counts in `unreadable` those that cannot be read,
    by the reason.
    """
    index = reader.cache.index
    total = int(index.samples.sum())
    for number in np.unique(np.linspace(0, total - 1, min(count, total)).round().astype(int)).tolist():
        try:
            yield reader.scene(*index.locate(number))
        except SceneError as error:
            unreadable[str(error)] += 1


def _samples(scene: Scene, data: DataPipeline, renderer: ChatRenderer) -> SceneSamples:
    """The scene with a sample of each task that it supports, or why there is none."""
    samples: list[TaskSample] = []
    refused: dict[str, str] = {}
    for name, task in data.tasks.items():
        if not task.supports(scene):
            continue
        try:
            rendered = renderer.render(scene, task.conversation(scene, name))
        except SceneError as error:
            refused[name] = str(error)
            continue
        ids, labels = rendered.input_ids.tolist(), rendered.labels.tolist()
        learned = sum(label != IGNORE_INDEX for label in labels)
        samples.append(TaskSample(name, spans(ids, labels, renderer.tokenizer), len(ids), learned))
    unsupported = [name for name, task in data.tasks.items() if not task.supports(scene)]
    return SceneSamples(scene, _images(scene, renderer, refused), samples, refused, unsupported)


def _images(scene: Scene, renderer: ChatRenderer, refused: dict[str, str]) -> dict[str, Any]:
    """The newest image of each camera or medium that is shown, at the size that the model gets."""
    media = [] if scene.dialogue is None else list(scene.dialogue.media)
    shown: dict[str, Camera | Medium] = {f"medium {number}": medium for number, medium in enumerate(media)}
    try:
        shown |= {camera.name: camera for camera in renderer.shown_cameras(scene)}
        return {name: renderer.view(name, each).images[-1] for name, each in shown.items()}
    except SceneError as error:
        refused["images"] = str(error)
        return {}


def _identity(composition: Composition, shown: Sequence[SceneSamples], total: int) -> dict[str, object]:
    return {"recipe": composition.recipe, "scenes": f"{len(shown)} of {total}", "tokens": "; ".join(_summary(shown))}


def _summary(shown: Sequence[SceneSamples]) -> list[str]:
    """A line for each task: its samples, their mean length, and how many were refused."""
    tasks = dict.fromkeys(name for each in shown for name in (*(one.task for one in each.samples), *each.refused))
    lines = []
    for task in tasks:
        samples = [one for each in shown for one in each.samples if one.task == task]
        refused = sum(task in each.refused for each in shown)
        tokens, learned = (sum(getattr(one, name) for one in samples) for name in ("tokens", "learned"))
        count = max(len(samples), 1)
        line = f"{task}: {len(samples)} samples of {tokens / count:.0f} tokens, {learned / count:.0f} of them learned"
        lines.append(f"{line}; {refused} refused" if refused else line)
    return lines
