"""Engines that sample answers: one protocol (contract 8) for the live model in this process and for servers."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from framework.scene.batch import MicroBatch


@dataclass(frozen=True, slots=True)
class Requests:
    """`p` prompts `(p, t)`, padded on the left; each is answered once for every one of its `seeds`.

    `grammars`: the form (Lark) of each prompt's answers, None for free text. An answer has at most `max_new_tokens`,
    drawn at `temperature`.
    """

    prompts: MicroBatch
    grammars: tuple[str | None, ...]
    seeds: tuple[tuple[int, ...], ...]
    max_new_tokens: int
    temperature: float


@dataclass(frozen=True, slots=True)
class Generation:
    """One answer: its drawn `tokens`, the end of turn included where it was drawn, their `logprobs` under the
    distribution they were drawn from, the `text` without the end of turn, whether it is `complete` (or was cut by the
    budget), and the `version` of the weights that drew it.
    """

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    text: str
    complete: bool
    version: int

    def state(self) -> list[Any]:
        """As JSON."""
        return [self.tokens, self.logprobs, self.text, self.complete, self.version]

    @classmethod
    def of(cls, state: Sequence[Any]) -> Generation:
        """The answer of a `state`."""
        tokens, logprobs, *rest = state
        return cls(tuple(tokens), tuple(logprobs), *rest)


class EngineError(RuntimeError):
    """An engine cannot answer, or does not hold the weights it should."""


class Engine(Protocol):
    """Samples from the policy as of its last `sync`. All methods raise `EngineError` when the engine is lost."""

    def sync(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Take over `weights`, Hugging Face names and whole tensors in one fixed order on all ranks (collective), as
        `version`.
        """
        ...

    def generate(self, requests: Requests) -> list[list[Generation]]:
        """The answers, prompt by prompt, in the order of the seeds. Equal requests at equal weights give equal
        answers.
        """
        ...

    def release(self) -> None:
        """Give memory back until the next `sync`, which takes it again (collective)."""
        ...

    def health(self) -> None:
        """Raise `EngineError` when the engine does not answer."""
        ...


@runtime_checkable
class AnswersAhead(Protocol):
    """What an engine that has weights of its own can do besides: answer while the model is trained, if it
    `answers_ahead`: it also has memory of its own.
    """

    @property
    def answers_ahead(self) -> bool:
        """Whether it keeps its memory while the model is trained."""
        ...

    def begin(self, requests: Requests) -> Callable[[], list[list[Generation]]]:
        """Begin to answer. What is returned waits for the answers, and must be called before the next `sync`."""
        ...


def answer_seed(run: int, step: int, prompt: str, sample: int) -> int:
    """The seed of one answer, below 2^63: a hash of the run's seed, the step, the prompt's identity and the sample's
    number in its group, so that a resumed run draws what an undisturbed one does.

    A seed by rank or by call would repeat the same draws on every rank, or never the same after a restart.
    """
    digest = hashlib.sha256(f"{run}/{step}/{prompt}/{sample}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
