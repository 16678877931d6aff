"""Asks a model about held-out scenes and scores what it says."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from framework.data.pipeline import DataPipeline
from framework.data.render.tasks import Answer, Task
from framework.data.stream.mixture import Source, read_scenes
from framework.evaluation.examples import Example
from framework.evaluation.suite import Results, Suite
from framework.model.generate import generate
from framework.model.language_action import LanguageActionModel
from framework.parallel.mesh import DataRank
from framework.scene.types import Question, Scene
from framework.training.to_device import to_device


@dataclass(frozen=True)
class TaskEvaluator:
    """Scenes of `source` (the first `scenes`; None: all) put to each of `tasks`, whose values are the most new tokens
    of an answer.

    `suite` scores the answers. `rows` prompts are answered at a time, greedily; answers with a form are constrained
    to it. `before_training`: also before the first stage.
    """

    source: Source
    tasks: Mapping[str, int]
    scenes: int | None = None
    suite: Callable[[], Suite] = Suite
    batch_size: int = 32
    before_training: bool = False

    def evaluate(
        self, model: LanguageActionModel, data: DataPipeline, dp_rank: DataRank
    ) -> tuple[Results, list[Example]]:
        """Results of the suite over all ranks, and every scene of this one's with what the model made of it; the model
        is left as it was.
        """
        suite, examples = self.suite(), dict[str, Example]()
        suite.to(next(model.parameters()).device)
        training = model.training
        model.eval()
        for name, scene, answer in self._answers(model, data, dp_rank):
            task = data.tasks[name]
            example = examples.get(scene.id, Example(scene))
            for said, question in _parts(task, name, scene, answer):
                decoded = task.decode(said, scene)
                if dp_rank.is_writer:
                    suite.update(scene, name, said, decoded, question)
                example = example.with_answer(name, said, decoded, question)
            examples[scene.id] = example
        model.train(training)
        return suite.compute(), list(examples.values())

    def _answers(
        self, model: LanguageActionModel, data: DataPipeline, dp_rank: DataRank
    ) -> Iterator[tuple[str, Scene, str]]:
        """What the model says, task by task; every rank asks about scenes of its own."""
        scenes: Sequence[Scene] = list(read_scenes(self.source, self.scenes))[dp_rank.rank :: dp_rank.world]
        device = next(model.parameters()).device
        for task, budget in self.tasks.items():
            for prompts in data.prompts(scenes, task, model.processor, self.batch_size):
                grammars = [data.tasks[task].grammar] * len(prompts["scenes"])
                answers = generate(model, to_device(prompts, device), model.processor.tokenizer, grammars, budget)
                for scene, answer in zip(prompts["scenes"], answers, strict=True):
                    yield task, scene, answer


def _parts(task: Task, name: str, scene: Scene, answer: str) -> Iterator[tuple[str, Question | None]]:
    """The answer, or the answer to each question where several were asked together."""
    if isinstance(task, Answer):
        questions = task.questions(scene, name)
        yield from zip(task.answers(answer, questions), questions, strict=True)
    else:
        yield answer, None
