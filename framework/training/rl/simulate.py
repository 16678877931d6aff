"""Simulates rollouts: the plans that answers spell, carried out in the stage's simulator."""

from __future__ import annotations

from collections.abc import Iterator

from framework.data.render.chat import ChatRenderer
from framework.generation.engine import Engine
from framework.scene.types import SceneError
from framework.simulation.rewards.rollouts import RolloutBatch, roll_out
from framework.training.evaluators.driver import EngineDriver
from framework.training.rl.metrics import MeanMetrics
from framework.training.rl.rollout import AnsweredPrompts
from framework.training.rl.stage import PolicyStage

SIMULATION = "simulation"
"""The name, next to those of the reward components, under which answers about undrivable scenes are counted."""


class RolloutSimulator:
    """Carries out plans in the stage's simulator: in open loop, or with the stage's continuation in closed loop.

    Args:
        stage: Simulator, continuation and the error budget of the rewards.
        engine: Answers again where there is a continuation.
        renderer: Renders the prompts of the continuation.
        metrics: Receives what the continuation measures, and answers that are dropped.
    """

    def __init__(self, stage: PolicyStage, engine: Engine, renderer: ChatRenderer, metrics: MeanMetrics) -> None:
        self.stage, self.engine, self.renderer, self.metrics = stage, engine, renderer, metrics

    def simulate(self, answered: AnsweredPrompts) -> Iterator[tuple[AnsweredPrompts, RolloutBatch]]:
        """Yields the answers with their episodes, in one batch.

        Where a scene cannot be simulated, yields a batch per prompt, and drops the answers about that scene: they count
        against the rewards' error budget. Raises what `Continuation` does.
        """
        failure: SceneError | None = None
        try:
            rollouts = self._simulate(answered)
        except SceneError as error:
            failure = error
        if failure is None:
            yield answered, rollouts
        elif len(answered) > 1:
            for one in answered:
                yield from self.simulate([one])
        else:
            ((prompt, generations),) = answered
            self.stage.rewards.count(SIMULATION, prompt.scene.id, failure, answers=len(generations))
            self.metrics.add("reward/errors", [1.0] * len(generations))
            self.metrics.add("rl/kept", [0.0])

    def _simulate(self, answered: AnsweredPrompts) -> RolloutBatch:
        """Raises what `roll_out` and `Continuation` do."""
        pairs = [(prompt, generation) for prompt, generations in answered for generation in generations]
        rollouts = roll_out(
            self.stage.simulator,
            [prompt.scene for prompt, _ in pairs],
            [generation.text for _, generation in pairs],
            [prompt.task.thought(generation.text) for prompt, generation in pairs],
            [len(generation.tokens) for _, generation in pairs],
            [prompt.task.decode(generation.text, prompt.scene) for prompt, generation in pairs],
        )
        continuation = self.stage.continuation
        if continuation is None:
            return rollouts
        tasks = [(prompt.sample.task, prompt.task) for prompt, _ in pairs]
        driver = EngineDriver(self.engine, self.renderer, tasks, self.stage.max_new_tokens, continuation.batch_size)
        return continuation(rollouts, self.stage.simulator, driver, self.metrics)
