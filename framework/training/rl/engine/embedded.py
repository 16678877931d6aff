"""The engine that samples from the live model itself: it has no copy of the weights to synchronize."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from framework.generation.engine import FlowPath, Generation, Requests
from framework.model.generate import sample
from framework.model.language_action import LanguageActionModel
from framework.model.plan import DrawnPlan, draw_plans, middle_plans
from framework.recipe.component import component
from framework.scene.batch import MicroBatch
from framework.training.to_device import to_device


@component
class EmbeddedEngine:
    """See `framework.generation.engine.Engine`. A prompt, its images and its sensors are encoded once for all answers.

    A sharded model must be gathered during `generate`, see `framework.parallel.sharding.unsharded`.

    Args:
        model: The live model.
    """

    draws_plans = True
    """Whether it also draws the plans of the model's action head."""
    own_weights = False
    """Whether it keeps a copy of the weights, with which it can generate while the model trains."""

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
        prompts = to_device(requests.prompts, next(self.model.parameters()).device)
        self.model.eval()
        try:
            generations = self._plan(prompts, requests) or self._answer(prompts, requests, count)
        finally:
            self.model.train(training)
        return [generations[start : start + count] for start in range(0, len(generations), count)]

    def _answer(self, prompts: MicroBatch, requests: Requests, count: int) -> list[Generation]:
        """Answers in tokens, `count` to each prompt."""
        answers = sample(
            self.model,
            prompts,
            self.model.processor.tokenizer,
            requests.grammars,
            requests.max_new_tokens,
            requests.temperature,
            [seed for seeds in requests.seeds for seed in seeds],
            copies=count,
        )
        return [Generation(a.tokens, a.logprobs, a.text, a.complete, self.version) for a in answers]

    def _plan(self, prompts: MicroBatch, requests: Requests) -> list[Generation]:
        """Plans of the model's action head, at temperature 0 those from the middle of the noise; none where it has no
        head for the prompts' tasks. Raises `ValueError` where it has one for some of them.
        """
        head, tasks = self.model.action_head, set(prompts["tasks"])
        if head is None or not tasks & set(head.tasks):
            return []
        if not tasks <= set(head.tasks):
            raise ValueError(f"engine: tasks {sorted(tasks)} in one call, and the action head plans {head.tasks} alone")
        if requests.temperature == 0:
            drawn = middle_plans(self.model, prompts)
        else:
            drawn = draw_plans(self.model, prompts, requests.seeds)
        return [_generation(one, self.version) for one in drawn]

    def release(self) -> None:
        """Does nothing: no memory is held between calls."""

    def health(self) -> None:
        """Does nothing: the engine lives as long as this process."""


def _generation(plan: DrawnPlan, version: int) -> Generation:
    path = FlowPath(tuple(plan.states.ravel().tolist()), tuple(plan.controls.ravel().tolist()), plan.rate_hz)
    return Generation((), tuple(plan.logprobs.tolist()), "", complete=True, version=version, path=path)
