"""Asks a model about held-out scenes and scores what it says."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from framework.data.feed import Feed
from framework.data.mixture import Source, read_scenes
from framework.data.tasks import Answer
from framework.evaluation.report import Example
from framework.evaluation.suite import Suite
from framework.model.assembly import LanguageActionModel
from framework.model.generate import generate
from framework.scene.types import Scene
from framework.training.transfer import to_device


@dataclass(frozen=True)
class Examination:
    """Scenes of `source` (the first `scenes`; None: all) put to each of `tasks`, whose values are the most new tokens of an answer.

    `rows` prompts are answered at a time, greedily; answers with a form are constrained to it.
    """

    source: Source
    tasks: Mapping[str, int]
    scenes: int | None = None
    rows: int = 32

    def examine(self, model: LanguageActionModel, feed: Feed) -> tuple[dict[str, Any], list[Example]]:
        """Results of the suite, and every scene with what the model made of it."""
        suite, examples = Suite(), {}
        training = model.training
        model.eval()
        with torch.no_grad():
            for task, scene, answer in self._answers(model, feed):
                decoded = feed.tasks[task].decode(answer, scene)
                question = feed.tasks[task].question(scene, task) if isinstance(feed.tasks[task], Answer) else None  # type: ignore[attr-defined]
                suite.update(scene, task, answer, decoded, question)
                example = examples.setdefault(scene.id, Example(scene))
                examples[scene.id] = example.with_answer(task, answer, decoded)
        model.train(training)
        return suite.compute(), list(examples.values())

    def _answers(self, model: LanguageActionModel, feed: Feed) -> Iterator[tuple[str, Scene, str]]:
        scenes: Sequence[Scene] = list(read_scenes(self.source, self.scenes))
        device = next(model.parameters()).device
        for task, budget in self.tasks.items():
            for prompts in feed.prompts(scenes, task, model.processor, self.rows):
                grammars = [feed.tasks[task].grammar] * len(prompts["scenes"])
                answers = generate(model, to_device(prompts, device), model.processor.tokenizer, grammars, budget)
                for scene, answer in zip(prompts["scenes"], answers, strict=True):
                    yield task, scene, answer


