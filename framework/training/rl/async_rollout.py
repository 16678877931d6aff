"""Asynchronous rollouts: the next step's answers are sampled while this step trains, so that they are one step
off-policy (Noukhovitch et al. 2024, arXiv 2410.18252).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from framework.data.stream.mixture import OpenMixture
from framework.generation.engine import AsyncEngine, Generation
from framework.training.rl.prompt_state import prompt_state
from framework.training.rl.rollout import AnsweredPrompts, Prompt
from framework.training.rl.sampler import Sampler


class AsyncRollout:
    """The answers to the prompts of the next step, which are sampled meanwhile.

    Args:
        sampler: Samples them. Raises `ValueError` where its stage asks for asynchronous rollouts and its engine cannot
            generate while the model is trained.
        mixture: Names the prompts in a checkpoint.
    """

    def __init__(self, sampler: Sampler, mixture: OpenMixture) -> None:
        engine = sampler.engine
        if sampler.stage.async_rollout and not (isinstance(engine, AsyncEngine) and engine.supports_async):
            raise ValueError(
                f"stage.async_rollout: {type(engine).__name__} has no weights and memory of its own to generate with "
                "while the model is trained; choose /stage/sampler: vllm with sleeps: false, or leave async_rollout "
                "false"
            )
        self.sampler, self.mixture = sampler, mixture
        self._answered: AnsweredPrompts | None = None
        self._wait: Callable[[], AnsweredPrompts] | None = None

    def start(self, prompts: Sequence[Prompt], step: int) -> None:
        """Starts to sample answers to the `prompts` of `step`."""
        self._wait = self.sampler.start(prompts, step)

    def wait(self) -> None:
        """Waits for the answers. The engine must not get other weights before."""
        if self._wait is not None:
            self._answered, self._wait = self._wait(), None

    def take(self) -> AnsweredPrompts | None:
        """Returns the prompts with their answers, once; None where none were started."""
        self.wait()
        answered, self._answered = self._answered, None
        return answered

    def state(self) -> list[list[Any]]:
        """Returns each prompt with its answers, as JSON."""
        return [
            [prompt_state(prompt, self.mixture), [generation.state() for generation in generations]]
            for prompt, generations in self._answered or ()
        ]

    def resume(self, prompts: Sequence[Prompt], state: Sequence[Sequence[Any]]) -> bool:
        """Takes over the answers of a `state` to `prompts`; returns False where it is about other prompts."""
        if [prompt_state(prompt, self.mixture) for prompt in prompts] != [prompt for prompt, _ in state]:
            return False
        self._answered = [
            (prompt, [Generation.from_state(generation) for generation in generations])
            for prompt, (_, generations) in zip(prompts, state, strict=True)
        ]
        return True
