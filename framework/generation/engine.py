"""Engines that sample answers: one protocol (contract 8) for the live model in this process and for servers."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from framework.scene.batch import MicroBatch


@dataclass(frozen=True, slots=True)
class Requests:
    """A call to an engine: prompts, each answered once per seed."""

    prompts: MicroBatch
    """`p` prompts `(p, t)`, padded on the left."""
    grammars: tuple[str | None, ...]
    """For each prompt the grammar (Lark) of its answers; None for free text."""
    seeds: tuple[tuple[int, ...], ...]
    """For each prompt the seeds of its answers, see `answer_seed`."""
    max_new_tokens: int
    """Most tokens of an answer."""
    temperature: float
    """Sampling temperature; 0 decodes greedily."""


@dataclass(frozen=True, slots=True)
class FlowPath:
    """A plan as an action head drew it, instead of an answer in tokens."""

    states: tuple[float, ...]
    """The states of the flow from noise to the plan, `(flow_steps + 1, steps, 2)` flattened."""
    controls: tuple[float, ...]
    """What is driven, `(steps, 2)` flattened: acceleration (m/s^2) and curvature (1/m)."""
    rate_hz: float
    """Steps per second."""


@dataclass(frozen=True, slots=True)
class Generation:
    """One answer as the engine sampled it."""

    tokens: tuple[int, ...]
    """Token ids, including the end of turn where it was sampled; none where an action head drew the plan."""
    logprobs: tuple[float, ...]
    """Log-probabilities of the tokens under the distribution they were sampled from: at the temperature, renormalized
    over what the grammar allows. Of a plan that an action head drew, the log-densities of the flow's steps.
    """
    text: str
    """The answer without the end of turn."""
    complete: bool
    """Whether the answer ended by itself; False where `max_new_tokens` cut it."""
    version: int
    """Version of the weights that sampled it, see `Engine.sync`."""
    path: FlowPath | None = field(default=None, kw_only=True)
    """How an action head drew the plan; None for an answer in tokens."""

    def state(self) -> list[Any]:
        """Returns the generation as JSON."""
        path = [] if self.path is None else [[self.path.states, self.path.controls, self.path.rate_hz]]
        return [self.tokens, self.logprobs, self.text, self.complete, self.version, *path]

    @staticmethod
    def from_state(state: Sequence[Any]) -> Generation:
        """Returns the generation of a `state`."""
        tokens, logprobs, text, complete, version, *paths = state
        path = next((FlowPath(tuple(states), tuple(controls), rate) for states, controls, rate in paths), None)
        return Generation(tuple(tokens), tuple(logprobs), text, complete, version, path=path)


class EngineError(RuntimeError):
    """The engine cannot answer, or does not hold the weights it should."""


class Engine(Protocol):
    """Samples from the policy as of the last `sync`. All methods raise `EngineError` when the engine is lost."""

    def sync(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Loads `weights` as `version` (collective): whole tensors in the same order on all ranks, the backbone's by
        their Hugging Face names, the encoders' by `encoders.NAME.`.
        """
        ...

    def generate(self, requests: Requests) -> list[list[Generation]]:
        """Returns the generations of each prompt, in the order of its seeds. Equal requests at equal weights give equal
        generations.
        """
        ...

    def release(self) -> None:
        """Frees memory until the next `sync`, which claims it again (collective)."""
        ...

    def health(self) -> None:
        """Raises `EngineError` when the engine does not answer."""
        ...


@runtime_checkable
class AsyncEngine(Protocol):
    """An engine with weights of its own, which can generate while the model is trained."""

    @property
    def supports_async(self) -> bool:
        """Whether the engine also has memory of its own, which it keeps while the model is trained."""
        ...

    def start(self, requests: Requests) -> Callable[[], list[list[Generation]]]:
        """Starts to generate. The returned function waits for the generations; call it before the next `sync`."""
        ...


def answer_seed(run: int, step: int, prompt: str, sample: int) -> int:
    """Returns the seed of one answer, below 2^63: a hash of the run's seed, the step, the prompt's identity and the
    sample's index in its group. A resumed run therefore samples what an undisturbed one does.

    A seed per rank or per call would repeat the same samples on every rank, or change them after a restart.
    """
    digest = hashlib.sha256(f"{run}/{step}/{prompt}/{sample}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
