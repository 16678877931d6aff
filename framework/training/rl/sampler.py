"""What the engine is asked: prompts, the form of their answers, and the seed of each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from framework.data.render.collate import collate
from framework.data.render.sample import Sample
from framework.data.render.tasks import Drive
from framework.data.stream.loader import StepLoader
from framework.generation.engine import AnswersAhead, Engine, EngineError, Generation, Requests, answer_seed
from framework.training.rl.stage import PolicyStage

Generations = list[list[Generation]]
"""Of each prompt, in order."""


class Asking:
    """Has `engine` answer prompts of `loader` as `stage` says. `seed` is that of the stage in this run."""

    def __init__(self, stage: PolicyStage, engine: Engine, loader: StepLoader, seed: int) -> None:
        if stage.async_rollout and not (isinstance(engine, AnswersAhead) and engine.answers_ahead):
            raise ValueError(
                f"stage.async_rollout: {type(engine).__name__} has no weights and memory of its own to answer "
                "with while the model is trained; choose /training/engine: vllm with sleeps: false, or leave "
                "async_rollout false"
            )
        self.stage, self.engine, self.loader, self.seed = stage, engine, loader, seed

    @property
    def together(self) -> int:
        """Prompts that are asked at a time."""
        return self.stage.generation_batch_size // self.stage.group_size

    def ask(self, prompts: Sequence[Sample], step: int) -> Generations:
        """A group of answers to each prompt, of which there are at most `together`."""
        return self.engine.generate(self.requests(prompts, step))

    def begin(self, prompts: Sequence[Sample], step: int) -> Callable[[], Generations]:
        """Begin to have any number of prompts answered; what is returned waits for the answers."""
        assert isinstance(self.engine, AnswersAhead)
        parts = [prompts[start : start + self.together] for start in range(0, len(prompts), self.together)]
        waiting = [self.engine.begin(self.requests(part, step)) for part in parts]
        return lambda: [group for wait in waiting for group in wait()]

    def again(self, prompt: Sample, step: int) -> Generation:
        """One answer to `prompt`, whichever it was asked for before. Raises `EngineError` for an empty one."""
        requests = self.requests([prompt], step)
        ((answer,),) = self.engine.generate(replace(requests, seeds=(requests.seeds[0][:1],)))
        if not answer.tokens:
            raise EngineError(f"step {step}: the engine drew no token for a prompt")
        return answer

    def requests(self, prompts: Sequence[Sample], step: int) -> Requests:
        """What the engine is told; answers do not depend on which prompts are together."""
        tasks = [drive_task(self.loader, sample) for sample in prompts]
        return Requests(
            prompts=collate(prompts, self.loader.renderer.special_ids, side="left"),
            grammars=tuple(task.grammar for task in tasks),
            seeds=tuple(self._seeds(sample, step) for sample in prompts),
            max_new_tokens=self.stage.max_new_tokens,
            temperature=self.stage.objective.temperature,
        )

    def draw(self, prompt: Sample, step: int) -> float:
        """A number in [0, 1) of this prompt's at this step."""
        return answer_seed(self.seed, step, self._identity(prompt), -1) / 2**63

    def _seeds(self, prompt: Sample, step: int) -> tuple[int, ...]:
        identity = self._identity(prompt)
        return tuple(answer_seed(self.seed, step, identity, number) for number in range(self.stage.group_size))

    def _identity(self, prompt: Sample) -> str:
        assert prompt.address is not None
        return f"{self.loader.mixture.sample_id(prompt.address)}@{prompt.address.turn}"


def drive_task(loader: StepLoader, prompt: Sample) -> Drive:
    """The task of a prompt. Raises `ValueError` for one whose answers are no plans."""
    task = loader.tasks[prompt.task]
    if not isinstance(task, Drive):
        raise ValueError(
            f"mixture: task {prompt.task} has no plan to carry out; reinforcement learning takes drive and reason"
        )
    return task
