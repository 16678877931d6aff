"""Policies that drive scenes: a model or an engine answers with plans, once or repeatedly on the way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from framework.data.pipeline import DataPipeline
from framework.data.render.chat import ChatRenderer
from framework.data.render.collate import collate
from framework.data.render.tasks import Drive
from framework.generation.engine import Engine, Generation, Requests
from framework.model.generate import generate
from framework.model.language_action import LanguageActionModel
from framework.scene.batch import MicroBatch
from framework.scene.types import Scene, Trajectory
from framework.scene.world.rig import Rig
from framework.simulation.episode import Episodes, drive
from framework.simulation.observe import policy_planner
from framework.simulation.scenes import SceneBatch
from framework.simulation.simulator import Environment
from framework.training.evaluators.base import task_of
from framework.training.plans import has_head_for, plan_of, plan_scenes, spelled
from framework.training.to_device import to_device


class Answers(NamedTuple):
    """One answer per scene."""

    texts: list[str]
    """The generated texts."""
    plans: list[Trajectory | None]
    """The plans, which the texts spell or an action head made; None for a text that does not parse."""


class DrivingPolicy(Protocol):
    """Answers scenes with plans."""

    @property
    def cameras(self) -> Sequence[str] | None:
        """Names of the cameras whose images it looks at; None for all."""
        ...

    def answer(self, scenes: Sequence[Scene]) -> Answers:
        """One answer per scene. The scenes' futures are not used."""
        ...


@dataclass(frozen=True)
class Driver:
    """A model as a driving policy, with greedy answers, or the plans of its action head."""

    model: LanguageActionModel
    """The model, whose weights are all on this rank."""
    data: DataPipeline
    """Renders and collates the prompts."""
    name: str
    """The task that asks for a plan, by its name in `data`."""
    max_new_tokens: int
    """Token limit of an answer."""

    @property
    def task(self) -> Drive:
        """The task. Raises `ValueError` if its answers are not plans."""
        return drive_task(self.data, self.name)

    @property
    def cameras(self) -> Sequence[str] | None:
        """See `DrivingPolicy`."""
        return self.data.cameras

    def answer(self, scenes: Sequence[Scene]) -> Answers:
        """See `DrivingPolicy`. Collective under tensor parallelism: every rank of the group must call it. The model's
        mode is restored.
        """
        tasks, training = [(self.name, self.task)] * len(scenes), self.model.training
        prompts = _prompts(self.data.renderer(self.model.processor), scenes, tasks)
        batch = to_device(prompts, next(self.model.parameters()).device)
        if has_head_for(self.model, self.name, self.task):
            plans = [own for (own,) in plan_scenes(self.model, batch)]
            texts = [spelled(self.task, scene, own) for scene, own in zip(scenes, plans, strict=True)]
            return Answers(texts, list(plans))
        grammars = [self.task.grammar] * len(scenes)
        self.model.eval()
        texts = generate(self.model, batch, self.model.processor.tokenizer, grammars, self.max_new_tokens)
        self.model.train(training)
        return Answers(texts, [self.task.decode(text, scene) for text, scene in zip(texts, scenes, strict=True)])


@dataclass(frozen=True)
class EngineDriver:
    """A generation engine as a driving policy, with greedy answers."""

    engine: Engine
    """The engine that samples from the policy."""
    renderer: ChatRenderer
    """Renders the prompts."""
    tasks: Sequence[tuple[str, Drive]]
    """The task of each scene, with its name."""
    max_new_tokens: int
    """Token limit of an answer."""
    batch_size: int
    """Scenes per request to the engine."""

    @property
    def cameras(self) -> Sequence[str] | None:
        """See `DrivingPolicy`."""
        return self.renderer.cameras

    def answer(self, scenes: Sequence[Scene]) -> Answers:
        """See `DrivingPolicy`; there are as many scenes as tasks."""
        answers = list[Generation]()
        for start in range(0, len(scenes), self.batch_size):
            end = start + self.batch_size
            batch, tasks = scenes[start:end], self.tasks[start:end]
            requests = Requests(
                prompts=_prompts(self.renderer, batch, tasks),
                grammars=tuple(task.grammar for _, task in tasks),
                seeds=((0,),) * len(batch),  # unused: greedy decoding
                max_new_tokens=self.max_new_tokens,
                temperature=0.0,
            )
            answers += [only for (only,) in self.engine.generate(requests)]
        rows = zip(answers, scenes, self.tasks, strict=True)
        plans = [plan_of(task, scene, answer) for answer, scene, (_, task) in rows]
        return Answers([answer.text for answer in answers], plans)


def drive_task(data: DataPipeline, name: str) -> Drive:
    """The task `name` of the data, whose answers are plans. Raises `ValueError` where there is none."""
    task = task_of(data, name)
    if not isinstance(task, Drive):
        raise ValueError(f"evals: task {name} has no plan to drive; give drive or reason")
    return task


def drive_closed_loop(
    environment: Environment,
    scenes: Sequence[Scene],
    batch: SceneBatch,
    driver: DrivingPolicy,
    steps: int,
    replan_every: int,
    rig: Rig,
    opening: Answers | None = None,
) -> tuple[Episodes, list[Answers]]:
    """Drive `scenes` for `steps` periods; after every `replan_every` periods the driver answers the scenes as they are
    now.

    Args:
        environment: Carries out the plans.
        scenes: The scenes at their start.
        batch: The same scenes as tensors.
        driver: The policy.
        steps: Length of the episodes, in the scenes' periods.
        replan_every: Periods between two answers.
        rig: Cameras through which scenes of the built-in world are rendered, those that the driver looks at; see
            `policy_planner`.
        opening: The answers to the scenes at their start, if they are known.

    Returns:
        The episodes, and the answers each time the driver was asked.
    """
    answers = list[Answers]()

    def policy(seen: Sequence[Scene]) -> list[Trajectory | None]:
        answers.append(driver.answer(seen) if opening is None or answers else opening)
        return answers[-1].plans

    planner = policy_planner(scenes, policy, rig.shown(driver.cameras), replan_every)
    return drive(environment, batch, planner, steps, replan_every), answers


def _prompts(renderer: ChatRenderer, scenes: Sequence[Scene], tasks: Sequence[tuple[str, Drive]]) -> MicroBatch:
    """The prompts that ask for a plan in each scene, padded on the left."""
    samples = [renderer.ask(scene, name, task) for scene, (name, task) in zip(scenes, tasks, strict=True)]
    return collate(samples, renderer.special_ids, side="left")
