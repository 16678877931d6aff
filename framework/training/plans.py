"""Plans of a model's action head as answers to prompts, with the text by which the task's codec spells them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from framework.data.render.tasks import Drive, Task
from framework.generation.engine import Generation
from framework.model.generate import sample
from framework.model.language_action import LanguageActionModel
from framework.model.plan import driven, plan, seed_of
from framework.scene.batch import MicroBatch
from framework.scene.types import Scene, Trajectory


def has_head_for(model: LanguageActionModel, name: str, task: Task) -> bool:
    """Whether the model's action head plans in the task `name`, instead of an answer in tokens."""
    return model.action_head is not None and name in model.action_head.tasks and isinstance(task, Drive)


def plan_scenes(model: LanguageActionModel, prompts: MicroBatch, samples: int = 0) -> list[list[Trajectory]]:
    """Plans for each of `prompts`, see `framework.model.plan.plan`; the model's mode is restored."""
    training = model.training
    model.eval()
    plans = plan(model, prompts, samples)
    model.train(training)
    return plans


def spelled(task: Task, scene: Scene, plan: Trajectory) -> str:
    """The text nearest to `plan` in the codec of the task, a `Drive`."""
    assert isinstance(task, Drive)
    return task.codec.encode(replace(scene, future=plan))


def plan_of(task: Task, scene: Scene, generation: Generation) -> Trajectory | None:
    """The plan of an answer in `scene` to a task whose answers are plans: what its text spells, or what an action head
    drew. None for a text that does not parse.
    """
    assert isinstance(task, Drive)
    if generation.path is None:
        return task.decode(generation.text, scene)
    return driven(scene, np.array(generation.path.controls).reshape(-1, 2), generation.path.rate_hz)


@dataclass(frozen=True, slots=True)
class Answered:
    """An answer, and the plans that belong to it."""

    text: str
    """The generated text, or the spelling of the action head's plan."""
    logprobs: Sequence[float] = ()
    """Log-probability of each token."""
    plan: Trajectory | None = None
    """The action head's plan; None for an answer in tokens."""
    samples: Sequence[Trajectory] = ()
    """Further plans that were drawn."""


def answered(
    model: LanguageActionModel, prompts: MicroBatch, name: str, task: Task, max_new_tokens: int, samples: int = 0
) -> list[Answered]:
    """The answers to prompts of one task, and for plans that many `samples`: of the action head from other noise, of
    answers in tokens at temperature 1, without those that do not parse. Seeds follow from the scenes' ids.
    """
    scenes = prompts["scenes"]
    if has_head_for(model, name, task):
        made = plan_scenes(model, prompts, samples)
        return [
            Answered(spelled(task, scene, first), (), first, others)
            for scene, (first, *others) in zip(scenes, made, strict=True)
        ]
    grammars, tokenizer = [task.grammar] * len(scenes), model.processor.tokenizer
    answers = sample(model, prompts, tokenizer, grammars, max_new_tokens)
    if not (samples and isinstance(task, Drive)):
        return [Answered(each.text, each.logprobs) for each in answers]
    seeds = [seed_of(f"{scene.id}/{number}") for scene in scenes for number in range(samples)]
    drawn = sample(model, prompts, tokenizer, grammars, max_new_tokens, 1.0, seeds, copies=samples)
    plans = [[task.decode(each.text, scene) for each in drawn[row * samples : (row + 1) * samples]]
             for row, scene in enumerate(scenes)]  # fmt: skip
    return [
        Answered(each.text, each.logprobs, None, [own for own in made if own is not None])
        for each, made in zip(answers, plans, strict=True)
    ]
