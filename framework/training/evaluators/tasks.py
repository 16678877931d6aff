"""Evaluates a model's answers to the tasks of training, on held-out scenes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from annotated_types import MinLen

from framework.data.pipeline import DataPipeline
from framework.data.render.tasks import Answer, Task, decode_answer
from framework.data.stream.mixture import Source, read_scenes
from framework.evaluation.examples import Example
from framework.evaluation.results import Results
from framework.evaluation.suite import Suite
from framework.model.language_action import LanguageActionModel
from framework.parallel.mesh import DataRank
from framework.recipe.component import component
from framework.recipe.ranges import Batch, Count, PositiveCount, Tokens
from framework.run.console import progress_bar
from framework.scene.inputs import Input, with_inputs
from framework.scene.types import Question, Scene, SceneError
from framework.training.evaluators.base import LeftOut, first_scenes, task_of
from framework.training.plans import Answered, answered
from framework.training.to_device import to_device


@component
@dataclass(frozen=True)
class TaskEvaluator:
    """Asks the model about scenes, task by task, and scores the answers with a suite of metrics.

    Answers are greedy. Those of tasks with a grammar are constrained to it; in the tasks of the model's action head its
    plans are the answers. A scene that cannot be judged is left out, named in the log and counted as `left_out`.
    """

    source: Source
    """The scenes."""
    tasks: Annotated[Mapping[str, Tokens], MinLen(1)]
    """Token limit of an answer, by the task's name in the data."""
    scenes: PositiveCount | None = None
    """Number of scenes, the first of the source; None for all."""
    suite: Callable[[], Suite] = Suite
    """Builds the metrics of each evaluation."""
    batch_size: Batch = 32
    """Prompts answered at a time."""
    before_training: bool = False
    """Whether to run before the first stage too."""
    inputs: Sequence[Input] | None = None
    """Inputs that prompts show, next to the ego's history; None shows all."""
    plan_samples: Count = 0
    """Further plans that are drawn for each scene, for minADE; 5 make it one of 6 plans. Answers in tokens are drawn at
    temperature 1."""

    def evaluate(
        self, model: LanguageActionModel, data: DataPipeline, dp_rank: DataRank
    ) -> tuple[Results, list[Example]]:
        """See `Evaluator`. The examples show all answers to a scene."""
        suite, examples = self.suite(), dict[str, Example]()
        suite.to(next(model.parameters()).device)
        training, left_out = model.training, {name: LeftOut() for name in self.tasks}
        model.eval()
        for name, scene, answer in self._answers(model, data, dp_rank):
            task = data.tasks[name]
            example = examples.get(scene.id, Example(scene))
            for text, question in _split_by_question(task, name, scene, answer.text):
                decoded = answer.plan or decode_answer(task, text, scene, answer.logprobs)
                if dp_rank.is_writer:
                    try:
                        measured = suite.update(scene, name, text, decoded, question, answer.samples)
                        example = example.with_measures(name, measured, question.question if question else "")
                    except SceneError as error:
                        left_out[name].add(scene, error)
                example = example.with_answer(name, text, decoded, question)
            examples[scene.id] = example
        model.train(training)
        results = suite.compute()
        for name, each in left_out.items():
            each.counted(results, name, dp_rank.group)
        return results, list(examples.values())

    def dry_run(self, data: DataPipeline, processor: Any) -> None:
        """See `DryRunnable`: the prompts are rendered, and the true answers scored."""
        suite = self.suite()
        scenes = [with_inputs(scene, self.inputs) for scene in first_scenes(self.source, self.scenes)]
        for name in self.tasks:
            task = task_of(data, name)
            for prompts in data.prompts(scenes, name, processor, rows=1):
                (scene,) = prompts["scenes"]
                answer = task.conversation(scene, name).answer
                for text, question in _split_by_question(task, name, scene, answer):
                    suite.update(scene, name, text, task.decode(text, scene), question)
        suite.compute(alone=True)

    def _answers(
        self, model: LanguageActionModel, data: DataPipeline, dp_rank: DataRank
    ) -> Iterator[tuple[str, Scene, Answered]]:
        """Yields task, scene and answer for this rank's share of the scenes."""
        read = list(read_scenes(self.source, self.scenes))[dp_rank.rank :: dp_rank.world]
        scenes = [with_inputs(scene, self.inputs) for scene in read]
        device = next(model.parameters()).device
        for task, max_new_tokens in self.tasks.items():
            done = 0
            with progress_bar(f"scenes answered, {task}", len(scenes)) as bar:
                for prompts in data.prompts(scenes, task, model.processor, self.batch_size):
                    answers = answered(
                        model, to_device(prompts, device), task, data.tasks[task], max_new_tokens, self.plan_samples
                    )
                    for scene, answer in zip(prompts["scenes"], answers, strict=True):
                        yield task, scene, answer
                    done += len(answers)
                    if bar is not None:
                        bar.update(done)


def _split_by_question(task: Task, name: str, scene: Scene, answer: str) -> Iterator[tuple[str, Question | None]]:
    """Yields the answer, or for a prompt with several questions each question's answer with the question."""
    if isinstance(task, Answer):
        questions = task.questions(scene, name)
        yield from zip(task.answers(answer, questions), questions, strict=True)
    else:
        yield answer, None
