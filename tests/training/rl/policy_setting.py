"""What the tests of reinforcement learning begin with: the tiny recipe's task, and prompts to draw from."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from framework.data.stream.loader import StepLoader
from framework.generation.engine import Generation, Requests
from framework.model.language_action import LanguageActionModel
from framework.parallel.mesh import DataRank
from framework.training.rl.collector import Collector
from framework.training.rl.engine.embedded import EmbeddedEngine
from framework.training.rl.rollout import RolloutGroup
from framework.training.rl.stage import PolicyStage
from framework.training.tasks.train import Train

GROUPS = 6
ANSWERS = 4
"""Groups of a step, and answers of a group."""


@dataclasses.dataclass
class Setting:
    """The tiny recipe's task with a random model; `loader` draws its prompts."""

    train: Train
    model: LanguageActionModel
    stage: PolicyStage
    loader: StepLoader
    folder: Path

    def collector(self, sampler: type[EmbeddedEngine] = EmbeddedEngine, **changes: Any) -> Collector:
        stage = dataclasses.replace(self.stage, **changes)
        return Collector(stage, sampler(self.model), self.loader, DataRank(), seed=7)


@dataclasses.dataclass
class Collected:
    """The groups of a step, the slices of the loader drawn for it and its metrics."""

    groups: list[RolloutGroup]
    slices_drawn: int
    metrics: dict[str, float]


def collect(collector: Collector, step: int) -> Collected:
    """The first half of a training step, as `PolicyModule.training_step` takes it."""
    for prompts, sampled in collector.rounds(step):
        answered = sampled or collector.sampler.sample(prompts, step)
        with collector.metrics.timed("judge"):
            for judged, rollouts in collector.simulator.simulate(answered, step):
                collector.add(judged, rollouts, collector.stage.rewards(rollouts))
    groups, metrics = collector.take(step)
    return Collected(groups, collector.slices_drawn, metrics)


class Apart(EmbeddedEngine):
    """Supports asynchronous rollouts, as an engine with weights of its own does."""

    supports_async = True

    def start(self, requests: Requests) -> Callable[[], list[list[Generation]]]:
        found = self.generate(requests)
        return lambda: found
