"""The page at `/`: a person picks a scene of the built-in world and sees plan, boxes and answers. It runs no script."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence

from framework.evaluation.examples import Example
from framework.evaluation.page import render_page
from framework.evaluation.predictions import displacement
from framework.evaluation.scene_view import LEGEND, scene_view
from framework.scene.types import Scene
from framework.scene.world.generate import generate_scene
from framework.scene.world.scenarios import KINDS
from framework.training.ask import Asker, Reply, by_question

LAST_SEED = 2**31 - 1
DIGITS = len(str(LAST_SEED))
TASKS = ("drive", "detect", "reason", "caption")
"""Tasks that the page asks, of those that the model knows."""
Answers = Callable[[Scene, Sequence[str]], Awaitable[dict[str, Reply]]]


async def world_page(query: Mapping[str, str], model: str, asker: Asker, answers: Answers) -> str:
    """The page's HTML.

    Args:
        query: `kind` and `seed` of the scene; empty for the form alone. What is neither is told on the page.
        model: The model's name.
        asker: Knows the tasks.
        answers: Answers tasks about a scene.
    """
    kind, seed, fault = query.get("kind", KINDS[0]), query.get("seed", "0"), ""
    view = None
    if kind not in KINDS:
        fault, kind = f"kind: {kind[:40]!r} is unknown", KINDS[0]
    elif not (seed.isascii() and seed.isdigit() and len(seed) <= DIGITS and int(seed) <= LAST_SEED):
        fault, seed = f"seed: {seed[:40]!r}; give a whole number up to {LAST_SEED}", "0"
    elif query:
        scene = await asyncio.to_thread(generate_scene, int(seed), kind)
        names = [name for name in TASKS if name in asker.data.tasks and asker.can_ask(name, scene)]
        example = Example(scene)
        replies = await answers(scene, names)
        for name, reply in replies.items():
            for words, question in by_question(asker.data.tasks[name], name, scene, reply.text):
                example = example.with_answer(name, words, reply.decoded, question)
        view = await asyncio.to_thread(scene_view, "world", example, displacement(scene, example.trajectory()))
    return render_page("serving.html.j2", title=model, identity={"model": model}, kinds=KINDS, kind=kind, seed=seed,
                       last_seed=LAST_SEED, fault=fault, scene=view, legend=LEGEND)  # fmt: skip
