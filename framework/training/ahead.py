"""Answers drawn while the step before trains: one step off-policy (Noukhovitch et al. 2024, arXiv 2410.18252)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from framework.data.loader import Sample
from framework.data.mixture import OpenMixture
from framework.rollout.engine import AnswersAhead, Engine, Generation, Requests
from framework.training.saved_prompts import prompt_state

Answers = list[list[Generation]]


class Ahead:
    """The prompts of a step that is to come, drawn from `mixture`, and their answers as `engine` gives them."""

    def __init__(self, engine: Engine, mixture: OpenMixture) -> None:
        self.engine, self.mixture = engine, mixture
        self._prompts: list[Sample] | None = None
        self._answers: Answers = []
        self._waiting: Callable[[], Answers] | None = None

    def begin(self, prompts: list[Sample], requests: Requests | None) -> None:
        """Have `prompts` answered, which is asked for by `requests` (None: there are none)."""
        assert isinstance(self.engine, AnswersAhead)
        self._prompts, self._answers = prompts, []
        self._waiting = None if requests is None else self.engine.begin(requests)

    def settle(self) -> None:
        """Wait for the answers: after that the engine may be given other weights."""
        if self._waiting is not None:
            self._answers, self._waiting = self._waiting(), None

    def taken(self) -> tuple[list[Sample], Answers] | None:
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

    def read(self, prompts: Sequence[Sample], state: Sequence[Sequence[Any]]) -> Answers | None:
        """The answers of a `state` to `prompts`; None where it is about others."""
        if [prompt_state(prompt, self.mixture) for prompt in prompts] != [asked for asked, _ in state]:
            return None
        return [[Generation.of(answer) for answer in answers] for _, answers in state]

    def hold(self, prompts: list[Sample], answers: Answers) -> None:
        """Keep `prompts` whose answers are known."""
        self._prompts, self._answers = prompts, answers
