"""Answers drawn while the step before trains: one step off-policy (Noukhovitch et al. 2024, arXiv 2410.18252)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from framework.data.render.sample import Sample
from framework.generation.engine import Generation
from framework.training.rl.prompt_state import prompt_state
from framework.training.rl.sampler import Asking, Generations


class Ahead:
    """The prompts of a step that is to come, and their answers as they are `asking`'s."""

    def __init__(self, asking: Asking) -> None:
        self.asking, self.mixture = asking, asking.loader.mixture
        self._prompts: list[Sample] | None = None
        self._answers: Generations = []
        self._waiting: Callable[[], Generations] | None = None

    def begin(self, prompts: list[Sample], step: int) -> None:
        """Have `prompts` of `step` answered, while something else is done."""
        self._prompts, self._answers = prompts, []
        self._waiting = self.asking.begin(prompts, step)

    def settle(self) -> None:
        """Wait for the answers: after that the engine may be given other weights."""
        if self._waiting is not None:
            self._answers, self._waiting = self._waiting(), None

    def taken(self) -> tuple[list[Sample], Generations] | None:
        """The prompts and their answers, once; None where nothing was drawn ahead."""
        self.settle()
        prompts, self._prompts = self._prompts, None
        return None if prompts is None else (prompts, self._answers)

    def state(self) -> list[list[Any]]:
        """Each prompt and its answers, as JSON."""
        pairs = zip(self._prompts or [], self._answers, strict=False)
        return [
            [prompt_state(prompt, self.mixture), [answer.state() for answer in answers]] for prompt, answers in pairs
        ]

    def resume(self, prompts: list[Sample], state: Sequence[Sequence[Any]]) -> bool:
        """Take over the answers of a `state` to `prompts`; False where it is about others."""
        if [prompt_state(prompt, self.mixture) for prompt in prompts] != [asked for asked, _ in state]:
            return False
        self._prompts = prompts
        self._answers = [[Generation.of(answer) for answer in answers] for _, answers in state]
        return True
