"""Policies as drivers of scenes: asked for plans, once or again and again on the way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from framework.data.pipeline import DataPipeline
from framework.data.render.chat import ChatRenderer
from framework.data.render.collate import collate
from framework.data.render.sample import Sample
from framework.data.render.tasks import Conversation, Drive
from framework.generation.engine import Engine, Requests
from framework.model.generate import generate
from framework.model.language_action import LanguageActionModel
from framework.scene.batch import MicroBatch
from framework.scene.types import Scene, Trajectory
from framework.scene.world.rig import Rig
from framework.simulation.episode import Episodes, drive
from framework.simulation.observe import policy_planner
from framework.simulation.scenes import SceneBatch
from framework.simulation.simulator import Environment
from framework.training.to_device import to_device


class Answers(NamedTuple):
    """What was said to scenes, and the plans that it spells: None for an answer that does not parse."""

    texts: list[str]
    plans: list[Trajectory | None]


class Asked(Protocol):
    """Answers scenes with plans."""

    def answer(self, scenes: Sequence[Scene]) -> Answers:
        """The answers to `scenes`, of which no future need be known."""
        ...


@dataclass(frozen=True)
class Driver:
    """`model` asked for plans by task `name` of `data`: greedy answers of at most `max_new_tokens`."""

    model: LanguageActionModel
    data: DataPipeline
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
        """See `Asked` (collective where the model is cut: every rank of it must ask). The model is left as it was."""
        tasks, training = [(self.name, self.task)] * len(scenes), self.model.training
        prompts = _prompts(self.data.renderer(self.model.processor), scenes, tasks)
        batch = to_device(prompts, next(self.model.parameters()).device)
        grammars = [self.task.grammar] * len(scenes)
        self.model.eval()
        texts = generate(self.model, batch, self.model.processor.tokenizer, grammars, self.max_new_tokens)
        self.model.train(training)
        return _decoded(texts, scenes, tasks)


@dataclass(frozen=True)
class EngineDriver:
    """The policy that `engine` samples from, asked greedily for plans, each scene by its task of `tasks` (name and
    task): answers of at most `max_new_tokens`, `rows` at a time.
    """

    engine: Engine
    renderer: ChatRenderer
    tasks: Sequence[tuple[str, Drive]]
    max_new_tokens: int
    batch_size: int

    def answer(self, scenes: Sequence[Scene]) -> Answers:
        """See `Asked`: as many scenes as tasks."""
        texts = list[str]()
        for start in range(0, len(scenes), self.batch_size):
            asked, tasks = scenes[start : start + self.batch_size], self.tasks[start : start + self.batch_size]
            requests = Requests(
                prompts=_prompts(self.renderer, asked, tasks),
                grammars=tuple(task.grammar for _, task in tasks),
                seeds=((0,),) * len(asked),  # greedy: nothing is drawn
                max_new_tokens=self.max_new_tokens,
                temperature=0.0,
            )
            texts += [only.text for (only,) in self.engine.generate(requests)]
        return _decoded(texts, scenes, self.tasks)


def driven(
    environment: Environment,
    scenes: Sequence[Scene],
    batch: SceneBatch,
    driver: Asked,
    steps: int,
    replan_every: int,
    rig: Rig,
    opening: Answers | None = None,
) -> tuple[Episodes, list[Answers]]:
    """How `scenes`, as a `batch`, are driven for `steps` periods by `driver`, shown them anew after every
    `replan_every`, and what was answered at each look at them; `opening` is what is answered at the first, where that
    is known. For `rig` see `policy_planner`.
    """
    looks = list[Answers]()

    def policy(seen: Sequence[Scene]) -> list[Trajectory | None]:
        looks.append(driver.answer(seen) if opening is None or looks else opening)
        return looks[-1].plans

    return drive(environment, batch, policy_planner(scenes, policy, rig), steps, replan_every), looks


def _prompts(renderer: ChatRenderer, scenes: Sequence[Scene], tasks: Sequence[tuple[str, Drive]]) -> MicroBatch:
    """What asks for a plan in each scene, padded on the left."""
    samples = []
    for scene, (name, task) in zip(scenes, tasks, strict=True):
        question = Conversation(task.prompt(scene, name), answer="")
        samples.append(Sample(renderer.render(scene, question, for_generation=True), scene, name))
    return collate(samples, renderer.special_ids, side="left")


def _decoded(texts: list[str], scenes: Sequence[Scene], tasks: Sequence[tuple[str, Drive]]) -> Answers:
    said = zip(texts, scenes, tasks, strict=True)
    return Answers(texts, [task.decode(text, scene) for text, scene, (_, task) in said])
