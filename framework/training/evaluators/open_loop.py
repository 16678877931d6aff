"""Evaluates a model's plans for held-out scenes by carrying each out in the simulator, without replanning."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from framework.data.pipeline import DataPipeline
from framework.data.stream.mixture import Source, read_scenes
from framework.evaluation.baselines import TRAJECTORY_BASELINES
from framework.evaluation.examples import DrivenScene, Example
from framework.evaluation.results import MODEL, SIMULATION, Results
from framework.evaluation.slices import SceneMeasures, mean, share_if_any
from framework.evaluation.suite import drop_nan
from framework.model.language_action import LanguageActionModel
from framework.parallel.collectives import all_gather_objects
from framework.parallel.mesh import DataRank
from framework.recipe.component import component
from framework.recipe.ranges import Batch, PositiveCount, Tokens
from framework.scene.check import PLAN_FAULTS
from framework.scene.types import Scene, Trajectory
from framework.simulation.closed_loop import MEASURES, measures_by_scene, worst
from framework.simulation.rewards.reward_sum import RewardSum
from framework.simulation.rewards.rollouts import RolloutBatch, roll_out
from framework.simulation.simulator import Simulator
from framework.training.evaluators.base import LeftOut, batches_of_rank, first_scenes
from framework.training.evaluators.driven import driven_episodes
from framework.training.evaluators.driver import Answers, Driver, drive_task

EXPERT = "expert"
"""The method that drives the recorded future."""


@component
@dataclass(frozen=True)
class OpenLoopEvaluator:
    """Carries out one plan per scene to its end in the simulator, and measures and rewards the episode.

    The model answers greedily. The baselines' plans and the expert's are carried out too, on the same scenes. For plans
    that are renewed on the way, see `ClosedLoopEvaluator`. A scene that cannot be simulated is left out, named in the
    log and counted as `left_out`.
    """

    source: Source
    """The scenes."""
    simulator: Simulator
    """Carries out the plans."""
    rewards: RewardSum
    """The rewards, as in reinforcement learning."""
    task: str = "drive"
    """The task that asks for a plan: drive or reason."""
    scenes: PositiveCount | None = None
    """Number of scenes, the first of the source; None for all."""
    max_new_tokens: Tokens = 64
    """Token limit of an answer."""
    batch_size: Batch = 32
    """Scenes answered at a time."""
    before_training: bool = False
    """Whether to run before the first stage too."""

    def evaluate(
        self, model: LanguageActionModel, data: DataPipeline, dp_rank: DataRank
    ) -> tuple[Results, list[Example]]:
        """See `Evaluator`. The examples show the model's plans."""
        methods = (MODEL, *TRAJECTORY_BASELINES, EXPERT)
        rare = dict.fromkeys(("reward_failure", *(f"fault/{kind}" for kind in PLAN_FAULTS)), share_if_any)
        columns = dict.fromkeys((*MEASURES, "reward", "parse_failure"), mean) | rare
        scores = {name: SceneMeasures(columns) for name in methods}
        for score in scores.values():
            score.to(next(model.parameters()).device)
        driver, examples = Driver(model, data, self.task, self.max_new_tokens), list[Example]()
        left_out = LeftOut()
        for scenes in batches_of_rank(list(read_scenes(self.source, self.scenes)), dp_rank, self.batch_size):
            answers = driver.answer(scenes)
            measured = self._update(scores, driver, scenes, answers, left_out) if dp_rank.is_writer else {}
            for row, (scene, text, plan) in enumerate(zip(scenes, *answers, strict=True)):
                example = Example(scene).with_answer(self.task, text, plan)
                if row in measured:
                    measures, episode = measured[row]
                    example = replace(example.with_measures(SIMULATION, measures), driven=episode)
                examples.append(example)
        self.rewards.settle(lambda errors: all_gather_objects(errors, dp_rank.group))
        section = {name: drop_nan(score.compute()) for name, score in scores.items()}
        results: Results = {SIMULATION: {name: sliced for name, sliced in section.items() if sliced}}
        return left_out.counted(results, SIMULATION, dp_rank.group), examples

    def dry_run(self, data: DataPipeline, processor: Any) -> None:
        """See `DryRunnable`: the expert's plans are carried out."""
        task, scenes = drive_task(data, self.task), first_scenes(self.source, self.scenes)
        for _ in data.prompts(scenes, self.task, processor, rows=1):
            pass
        scenes = [scene for scene in scenes if task.supports(scene)]
        plans = [task.decode(task.conversation(scene, self.task).answer, scene) for scene in scenes]
        if not scenes:
            return  # later ones may have what the task needs
        nothing = [""] * len(scenes), [None] * len(scenes), [0] * len(scenes)
        list(self._measures(roll_out(self.simulator, scenes, *nothing, plans)))

    def _update(
        self,
        scores: dict[str, SceneMeasures],
        driver: Driver,
        scenes: Sequence[Scene],
        answers: Answers,
        left_out: LeftOut,
    ) -> dict[int, tuple[dict[str, float], DrivenScene]]:
        """Add the episodes of the model's plans and of the other methods' to the scores. Returns what was measured of
        the model and what it drove, by row of `scenes`."""
        driven: list[DrivenScene] = []

        def carry_out(rows: list[int]) -> dict[str, list[dict[str, float]]]:
            chosen = [scenes[row] for row in rows]
            found = {}
            for name in scores:
                plans = [_plan_of(name, scenes[row], answers.plans[row]) for row in rows]
                texts = [answers.texts[row] if name == MODEL else "" for row in rows]
                thoughts = [driver.task.thought(text) if name == MODEL else None for text in texts]
                rollouts = roll_out(self.simulator, chosen, texts, thoughts, [0] * len(rows), plans)
                found[name] = list(self._measures(rollouts))
                if name == MODEL:
                    driven[:] = driven_episodes(rollouts.episodes)
            return found

        measured: dict[int, tuple[dict[str, float], DrivenScene]] = {}
        for rows, found in left_out.parts(scenes, carry_out):
            for name, score in scores.items():
                for row, measures in zip(rows, found[name], strict=True):
                    score.update(scenes[row], measures)
            measured |= zip(rows, zip(found[MODEL], driven, strict=True), strict=True)
        return measured

    def _measures(self, rollouts: RolloutBatch) -> Iterator[dict[str, float]]:
        """Yields the measures of each plan. A plan that did not parse gets the worst value of those it lacks; an answer
        on which a reward fails gets the worst reward."""
        rewards, faults = self.rewards(rollouts), [f"fault/{kind}" for kind in PLAN_FAULTS]
        for row, measures in enumerate(measures_by_scene(rollouts.episodes)):
            judged = bool(rewards.valid[row])
            reward = float(rewards.total[row] if judged else self.rewards.worst(rollouts.take([row]))[0])
            failed = rollouts.plans[row] is None
            if failed:
                measures = {name: value if math.isnan(value) else worst(name) for name, value in measures.items()}
            kinds = {name: float(name == f"fault/{rollouts.faults[row]}") for name in faults}
            yield (
                measures
                | {"reward": reward, "parse_failure": float(failed), "reward_failure": float(not judged)}
                | kinds
            )


def _plan_of(name: str, scene: Scene, plan: Trajectory | None) -> Trajectory | None:
    """The plan of method `name`: the model's own `plan`, the expert's, or a baseline's."""
    if name == MODEL:
        return plan
    return scene.future if name == EXPERT else TRAJECTORY_BASELINES[name](scene)
