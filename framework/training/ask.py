"""Asks a model about scenes: prompts of several tasks in one batch, each answer constrained to its task's grammar."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from framework.data.pipeline import DataPipeline
from framework.data.render.collate import collate
from framework.data.render.sample import Sample
from framework.data.render.tasks import Answer, Caption, Detect, Drive, Task, decode_answer, has
from framework.model.generate import sample
from framework.model.language_action import LanguageActionModel
from framework.model.speculate import speculate
from framework.scene.batch import MicroBatch
from framework.scene.types import Boxes, Question, Scene, SceneError, Trajectory
from framework.training.plans import has_head_for, plan_scenes, spelled
from framework.training.to_device import to_device

GUESSES, GUESSES_IN_BATCH = 8, 2
"""The most tokens of an answer that are guessed for a pass, where one prompt is answered alone and for each of several:
a pass computes the longest guess of a batch for all of its rows (see `framework.model.speculate`)."""


@dataclass(frozen=True, slots=True)
class Reply:
    """A model's answer to one prompt."""

    text: str
    """The generated text."""
    decoded: Trajectory | Boxes | str | None
    """What the text means; None where it does not parse, as where the token limit cut it."""
    logprob: float
    """Sum of the log-probabilities of its tokens, each under the distribution that it was taken from."""
    tokens: tuple[int, ...]
    """The generated tokens, with the end of turn where it was generated."""
    complete: bool
    """Whether the answer ended by itself; False where the token limit cut it."""
    seconds: float
    """The answer's share of the time that its batch was generated in."""
    prompt_tokens: int
    """Tokens of the prompt, those of images and sensors included."""


@dataclass(frozen=True)
class Asker:
    """Answers greedily, without labels: a scene needs only what a prompt shows."""

    model: LanguageActionModel
    """The model, whose weights are all on this rank."""
    data: DataPipeline
    """Renders and collates the prompts; its tasks are those that can be asked."""
    guesses: int = GUESSES
    """The most tokens that are guessed for a pass where one prompt is answered alone; 0 always decodes one by one."""

    def can_ask(self, name: str, scene: Scene) -> bool:
        """Whether the task `name` can be asked about `scene`, be the answer known (see `Task.supports`) or not."""
        task = self.data.tasks[name]
        if isinstance(task, Drive):
            return scene.history is not None
        if isinstance(task, Detect):
            return has(scene, task.codec.needs)
        return isinstance(task, Caption) or task.supports(scene)

    def prompt(self, name: str, scene: Scene, task: Task | None = None) -> Sample:
        """The rendered prompt of the task `name`, of the data or given. Raises `SceneError` for a scene that cannot be
        rendered.
        """
        return self.data.renderer(self.model.processor).ask(scene, name, task or self.data.tasks[name])

    def answer(
        self, prompts: Sequence[Sample], max_new_tokens: int, tasks: Sequence[Task] | None = None
    ) -> list[Reply]:
        """One answer to each prompt (collective under tensor parallelism); in tasks of the model's action head, its
        plan. The model must be in evaluation mode.

        `tasks` are those of the prompts; None takes the data's, by name. Raises `FloatingPointError` where the model's
        scores are not finite: its answers would say nothing.
        """
        tasks = tasks or [self.data.tasks[prompt.task] for prompt in prompts]
        replies: dict[int, Reply] = {}
        planned = [has_head_for(self.model, prompt.task, task) for prompt, task in zip(prompts, tasks, strict=True)]
        for by_head, reply_to in ((True, self._plans), (False, self._answers)):
            rows = [row for row, own in enumerate(planned) if own is by_head]
            if rows:
                made = reply_to([prompts[row] for row in rows], max_new_tokens, [tasks[row] for row in rows])
                replies |= dict(zip(rows, made, strict=True))
        return [replies[row] for row in range(len(prompts))]

    def _batch(self, prompts: Sequence[Sample]) -> MicroBatch:
        renderer = self.data.renderer(self.model.processor)
        return to_device(collate(prompts, renderer.special_ids, side="left"), next(self.model.parameters()).device)

    def _plans(self, prompts: Sequence[Sample], max_new_tokens: int, tasks: Sequence[Task]) -> list[Reply]:
        """The plans of the model's action head, which have no tokens."""
        started = time.perf_counter()
        plans = [own for (own,) in plan_scenes(self.model, self._batch(prompts))]
        seconds = (time.perf_counter() - started) / len(prompts)
        return [
            Reply(spelled(task, prompt.scene, own), own, 0.0, (), True, seconds, len(prompt.rendered.input_ids))
            for own, task, prompt in zip(plans, tasks, prompts, strict=True)
        ]

    def _answers(self, prompts: Sequence[Sample], max_new_tokens: int, tasks: Sequence[Task]) -> list[Reply]:
        """Answers in tokens."""
        started, batch = time.perf_counter(), self._batch(prompts)
        grammars = [task.grammar for task in tasks]
        tokenizer = self.model.processor.tokenizer
        if self.guesses and not self.model.family.recurrent:
            most = self.guesses if len(prompts) == 1 else min(self.guesses, GUESSES_IN_BATCH)
            answers = speculate(self.model, batch, tokenizer, grammars, max_new_tokens, most)
        else:
            answers = sample(self.model, batch, tokenizer, grammars, max_new_tokens)
        if not all(math.isfinite(logprob) for each in answers for logprob in each.logprobs):
            raise FloatingPointError("the model's scores are not finite (NaN); take a checkpoint with sound weights")
        seconds = (time.perf_counter() - started) / len(prompts)
        return [
            Reply(
                each.text, _decoded(task, each.text, prompt.scene, each.logprobs), sum(each.logprobs), each.tokens,
                each.complete, seconds, len(prompt.rendered.input_ids),
            )
            for each, task, prompt in zip(answers, tasks, prompts, strict=True)
        ]  # fmt: skip


def plan_and_boxes(replies: Iterable[Reply]) -> tuple[Trajectory | None, Boxes | None]:
    """The first plan and the first boxes among what was answered."""
    decoded = [reply.decoded for reply in replies]
    plan = next((each for each in decoded if isinstance(each, Trajectory)), None)
    return plan, next((each for each in decoded if isinstance(each, Boxes)), None)


def by_question(task: Task, name: str, scene: Scene, text: str) -> list[tuple[str, Question | None]]:
    """The answer `text`, or for a prompt of several questions the answer to each with its question."""
    if not isinstance(task, Answer):
        return [(text, None)]
    questions = task.questions(scene, name)
    return list(zip(task.answers(text, questions), questions, strict=True))


def _decoded(task: Task, text: str, scene: Scene, logprobs: Sequence[float]) -> Trajectory | Boxes | str | None:
    try:
        return decode_answer(task, text, scene, logprobs)
    except SceneError:
        return None
