"""A model as the driver of scenes: asked for its plan, it answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from framework.data.feed import Feed
from framework.data.loader import Sample, collate_for
from framework.data.tasks import Conversation, Drive
from framework.model.assembly import LanguageActionModel
from framework.model.generate import generate
from framework.scene.types import Scene, Trajectory
from framework.training.transfer import to_device


class Answers(NamedTuple):
    """What was said to scenes, and the plans that it spells: None for an answer that does not parse."""

    texts: list[str]
    plans: list[Trajectory | None]


@dataclass(frozen=True)
class Driver:
    """`model` asked for plans by task `name` of `data`: greedy answers of at most `max_new_tokens`."""

    model: LanguageActionModel
    data: Feed
    name: str
    max_new_tokens: int

    @property
    def task(self) -> Drive:
        """The task. Raises `ValueError` for one whose answers are no plans."""
        task = self.data.tasks[self.name]
        if not isinstance(task, Drive):
            raise ValueError(f"examination: task {self.name} has no plan to carry out; give drive or reason")
        return task

    def answer(self, scenes: Sequence[Scene]) -> Answers:
        """The answers to `scenes`, of which no future need be known (collective where the model is cut: every rank of
        it must ask).
        """
        renderer, task = self.data.renderer(self.model.processor), self.task
        questions = [Conversation(task.prompt(scene, self.name), answer="") for scene in scenes]
        prompts = [renderer.render(s, asked, for_generation=True) for s, asked in zip(scenes, questions, strict=True)]
        samples = [Sample(prompt, scene, self.name) for prompt, scene in zip(prompts, scenes, strict=True)]
        batch = to_device(collate_for(renderer, samples, generation=True), next(self.model.parameters()).device)
        grammars = [task.grammar] * len(scenes)
        texts = generate(self.model, batch, self.model.processor.tokenizer, grammars, self.max_new_tokens)
        return Answers(texts, [task.decode(text, scene) for text, scene in zip(texts, scenes, strict=True)])
