"""The engine that samples from the live model itself: no copy of the weights, nothing to synchronise."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from framework.generation.engine import Generation, Requests
from framework.model.generate import sample
from framework.model.language_action import LanguageActionModel
from framework.training.to_device import to_device


class EmbeddedEngine:
    """See `framework.generation.engine.Engine`. A prompt, its images and its sensors are read once for all its answers.

    Where the model is sharded, every rank holds it whole in the meantime (`framework.parallel.sharding.unsharded`).
    """

    def __init__(self, model: LanguageActionModel) -> None:
        self.model = model
        self.version = 0

    def sync(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Note the version: the weights are the model's own, and are not asked for."""
        self.version = version

    def generate(self, requests: Requests) -> list[list[Generation]]:
        """See `Engine`. The model is left as it was."""
        copies = {len(seeds) for seeds in requests.seeds}
        if len(copies) != 1:
            raise ValueError(f"engine: groups of {sorted(copies)} answers; ask for equally many of every prompt")
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
        made = [Generation(a.tokens, a.logprobs, a.text, a.complete, self.version) for a in answers]
        return [made[start : start + count] for start in range(0, len(made), count)]

    def release(self) -> None:
        """Nothing is held between calls."""

    def health(self) -> None:
        """It lives as long as this process."""
