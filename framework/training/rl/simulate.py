"""Simulates rollouts: the plans that answers spell, carried out in the stage's simulator, once or again and again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from framework.data.render.chat import ChatRenderer
from framework.generation.engine import Engine, Generation
from framework.scene.types import SceneError
from framework.simulation.rewards.rollouts import RolloutBatch, roll_out
from framework.training.evaluators.driver import EngineDriver
from framework.training.plans import plan_of
from framework.training.rl.closed_loop import ClosedLoop, DrivenBatch, LaterAnswer, known_answers
from framework.training.rl.metrics import MeanMetrics
from framework.training.rl.rollout import AnsweredPrompts, Driven, Prompt
from framework.training.rl.sampler import Sampler
from framework.training.rl.stage import PolicyStage

SIMULATION = "simulation"
"""The name, next to those of the reward components, under which answers about undrivable scenes are counted."""


class RolloutSimulator:
    """Carries out plans in the stage's simulator: in open loop, or with the stage's continuation in closed loop.

    Args:
        stage: Simulator, continuation and the error budget of the rewards.
        engine: Answers again where there is a continuation.
        sampler: Samples the later turns of episodes in closed loop.
        renderer: Renders the prompts of the continuation, and of later turns.
        metrics: Receives what the continuation and the episodes measure, and answers that are dropped.
    """

    def __init__(
        self, stage: PolicyStage, engine: Engine, sampler: Sampler, renderer: ChatRenderer, metrics: MeanMetrics
    ) -> None:
        self.stage, self.engine, self.sampler = stage, engine, sampler
        self.renderer, self.metrics = renderer, metrics

    def simulate(self, answered: AnsweredPrompts, step: int) -> Iterator[tuple[AnsweredPrompts, RolloutBatch]]:
        """Yields the answers of `step` with their episodes, in one batch. In closed loop the answers are `Driven`: they
        hold the turns that followed.

        Where a scene cannot be simulated, yields a batch per prompt, and drops the answers about that scene: they count
        against the rewards' error budget. Raises what `Continuation` does.
        """
        failure: SceneError | None = None
        try:
            driven = self._simulate(answered, step)
        except SceneError as error:
            failure = error
        if failure is None:
            yield driven.answered, driven.rollouts
        elif len(answered) > 1:
            for one in answered:
                yield from self.simulate([one], step)
        else:
            ((prompt, generations),) = answered
            self.stage.rewards.count(SIMULATION, prompt.scene.id, failure, answers=len(generations))
            self.metrics.add("reward/errors", [1.0] * len(generations))
            self.metrics.add("rl/kept", [0.0])

    def replay(
        self, prompt: Prompt, generations: Sequence[Generation], later: Sequence[Sequence[LaterAnswer]]
    ) -> DrivenBatch | None:
        """Drives the episodes of a checkpoint again by their answers; None where these lead to other prompts."""
        assert self.stage.rollout is not None
        driven = self.stage.rollout.drive(
            self.stage.simulator, self.renderer, [(prompt, list(generations))], known_answers(later), self.stage.rewards
        )
        ((_, opened),) = driven.answered
        prompts = [[turn.prompt.checksum for turn in one.turns] for one in opened if isinstance(one, Driven)]
        return driven if prompts == [[checksum for _, checksum in own] for own in later] else None

    def _drive(self, answered: AnsweredPrompts, rollout: ClosedLoop, step: int) -> DrivenBatch:
        """Raises what `ClosedLoop.drive` does."""
        places = [index for _, generations in answered for index in range(len(generations))]

        def ask(seen: Sequence[tuple[int, Prompt]], turn: int) -> list[Generation]:
            return self.sampler.answer_turn([(places[row], prompt) for row, prompt in seen], step)

        driven = rollout.drive(self.stage.simulator, self.renderer, answered, ask, self.stage.rewards)
        turns = [len(one.turns) + 1 for _, opened in driven.answered for one in opened if isinstance(one, Driven)]
        self.metrics.add("episodes/turns", [float(count) for count in turns], spread=True)
        ended = ~driven.rollouts.episodes.underway[:, -1]
        self.metrics.add("episodes/ended_early", ended.double().tolist())
        return driven

    def _simulate(self, answered: AnsweredPrompts, step: int) -> DrivenBatch:
        """Raises what `roll_out`, `Continuation` and `ClosedLoop.drive` do."""
        if self.stage.rollout is not None:
            return self._drive(answered, self.stage.rollout, step)
        pairs = [(prompt, generation) for prompt, generations in answered for generation in generations]
        rollouts = roll_out(
            self.stage.simulator,
            [prompt.scene for prompt, _ in pairs],
            [generation.text for _, generation in pairs],
            [prompt.task.thought(generation.text) for prompt, generation in pairs],
            [len(generation.tokens) for _, generation in pairs],
            [plan_of(prompt.task, prompt.scene, generation) for prompt, generation in pairs],
        )
        continuation = self.stage.continuation
        if continuation is None:
            return DrivenBatch(answered, rollouts)
        tasks = [(prompt.sample.task, prompt.task) for prompt, _ in pairs]
        driver = EngineDriver(self.engine, self.renderer, tasks, self.stage.max_new_tokens, continuation.batch_size)
        return DrivenBatch(answered, continuation(rollouts, self.stage.simulator, driver, self.metrics))
