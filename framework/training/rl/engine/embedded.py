"""The engine that samples from the live model itself: it has no copy of the weights to synchronize."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from framework.generation.engine import Generation, Requests
from framework.model.generate import sample
from framework.model.language_action import LanguageActionModel
from framework.recipe.component import component
from framework.training.to_device import to_device


@component
class EmbeddedEngine:
    """See `framework.generation.engine.Engine`. A prompt, its images and its sensors are encoded once for all answers.

    A sharded model must be gathered during `generate`, see `framework.parallel.sharding.unsharded`.

    Args:
        model: The live model.
    """

    def __init__(self, model: LanguageActionModel) -> None:
        self.model = model
        self.version = 0

    def sync(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Records the version; the weights are the model's own, and are not read."""
        self.version = version

    def generate(self, requests: Requests) -> list[list[Generation]]:
        """See `Engine`. Leaves the model in the mode it was in. Raises `ValueError` for groups of different sizes."""
        copies = {len(seeds) for seeds in requests.seeds}
        if len(copies) != 1:
            raise ValueError(f"engine: groups of {sorted(copies)} answers; give every prompt equally many seeds")
        count, training = copies.pop(), self.model.training
        self.model.eval()
        answers = sample(
            self.model,
            to_device(requests.prompts, next(self.model.parameters()).device),
            self.model.processor.tokenizer,
            requests.grammars,
            requests.max_new_tokens,
            requests.temperature,
            [seed for seeds in requests.seeds for seed in seeds],
            copies=count,
        )
        self.model.train(training)
        generations = [Generation(a.tokens, a.logprobs, a.text, a.complete, self.version) for a in answers]
        return [generations[start : start + count] for start in range(0, len(generations), count)]

    def release(self) -> None:
        """Does nothing: no memory is held between calls."""

    def health(self) -> None:
        """Does nothing: the engine lives as long as this process."""
