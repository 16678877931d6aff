"""Samples answers: builds the engine's requests from prompts, grammars and seeds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from framework.data.render.chat import ChatRenderer
from framework.data.render.collate import collate
from framework.generation.engine import AsyncEngine, Engine, EngineError, Generation, Requests, answer_seed
from framework.training.rl.metrics import MeanMetrics
from framework.training.rl.rollout import AnsweredPrompts, Prompt
from framework.training.rl.stage import PolicyStage


class Sampler:
    """Has the engine answer each prompt `stage.group_size` times.

    An answer depends on the prompt, the step, its index in the group and the weights alone, not on the prompts that
    share a call.

    Args:
        stage: Group size, length and temperature of the answers.
        engine: Generates them.
        renderer: Collates prompts as the trainer's batches.
        metrics: Receives the time that sampling takes.
        seed: Seed of the stage in this run.
    """

    def __init__(
        self, stage: PolicyStage, engine: Engine, renderer: ChatRenderer, metrics: MeanMetrics, seed: int
    ) -> None:
        self.stage, self.engine, self.renderer, self.metrics, self.seed = stage, engine, renderer, metrics, seed

    def batches(self, prompts: Sequence[Prompt]) -> Iterator[Sequence[Prompt]]:
        """Yields as many prompts at a time as one call to the engine takes, see `stage.generation_batch_size`."""
        size = self.stage.generation_batch_size // self.stage.group_size
        for start in range(0, len(prompts), size):
            yield prompts[start : start + size]

    def sample(self, prompts: Sequence[Prompt], step: int) -> AnsweredPrompts:
        """Returns `prompts`, one call's worth, with a group of generations each."""
        with self.metrics.timed("generate"):
            return list(zip(prompts, self.engine.generate(self.requests(prompts, step)), strict=True))

    def start(self, prompts: Sequence[Prompt], step: int) -> Callable[[], AnsweredPrompts]:
        """Starts to sample answers to any number of prompts. The returned function waits for them."""
        assert isinstance(self.engine, AsyncEngine)
        waits = [self.engine.start(self.requests(batch, step)) for batch in self.batches(prompts)]
        return lambda: list(zip(prompts, (group for wait in waits for group in wait()), strict=True))

    def sample_one(self, prompt: Prompt, step: int) -> Generation:
        """Returns one generation for a prompt of any step. Raises `EngineError` for an empty one."""
        requests = self.requests([prompt], step)
        ((generation,),) = self.engine.generate(replace(requests, seeds=(requests.seeds[0][:1],)))
        if not generation.logprobs:
            raise EngineError(f"step {step}: the engine sampled no token for a prompt")
        return generation

    def answer_turn(self, seen: Sequence[tuple[int, Prompt]], step: int) -> list[Generation]:
        """Returns one generation for each `(index in its group, prompt)` of later turns."""
        generations: list[Generation] = []
        size = self.stage.generation_batch_size
        for start in range(0, len(seen), size):
            part = seen[start : start + size]
            requests = self.requests([prompt for _, prompt in part], step)
            seeds = tuple((answer_seed(self.seed, step, prompt.id, index),) for index, prompt in part)
            generations += [only for (only,) in self.engine.generate(replace(requests, seeds=seeds))]
        return generations

    def requests(self, prompts: Sequence[Prompt], step: int) -> Requests:
        """Builds the engine's requests: prompts, grammars and seeds."""
        return Requests(
            prompts=collate([prompt.sample for prompt in prompts], self.renderer.special_ids, side="left"),
            grammars=tuple(prompt.task.grammar for prompt in prompts),
            seeds=tuple(self._seeds(prompt, step) for prompt in prompts),
            max_new_tokens=self.stage.max_new_tokens,
            temperature=self.stage.objective.temperature,
        )

    def uniform(self, prompt: Prompt, step: int, number: int = -1) -> float:
        """Returns a number in [0, 1) that depends on the prompt, the step and a `number` below 0 alone."""
        return answer_seed(self.seed, step, prompt.id, number) / 2**63

    def _seeds(self, prompt: Prompt, step: int) -> tuple[int, ...]:
        return tuple(answer_seed(self.seed, step, prompt.id, index) for index in range(self.stage.group_size))
