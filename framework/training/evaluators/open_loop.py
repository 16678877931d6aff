"""Asks a model to drive held-out scenes, carries its plans out in the simulator, and measures where that leads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from framework.data.pipeline import DataPipeline
from framework.data.stream.mixture import Source, read_scenes
from framework.evaluation.baselines import TRAJECTORY_BASELINES
from framework.evaluation.examples import Example
from framework.evaluation.slices import SceneMeasures, mean
from framework.evaluation.suite import MODEL, SIMULATION, Results, known
from framework.model.language_action import LanguageActionModel
from framework.parallel.collectives import all_gather_objects
from framework.parallel.mesh import DataRank
from framework.scene.types import Scene, Trajectory
from framework.simulation.closed_loop import MEASURES, measures_by_scene
from framework.simulation.rewards.reward_sum import RewardSum
from framework.simulation.rewards.rollouts import RolloutBatch, roll_out
from framework.simulation.simulator import Simulator
from framework.training.evaluators.base import batches_of_rank
from framework.training.evaluators.driver import Answers, Driver

EXPERT = "expert"


@dataclass(frozen=True)
class OpenLoopEvaluator:
    """Scenes of `source` (the first `scenes`; None: all) driven by what the model answers to `task` in at most
    `max_new_tokens`, greedily, `rows` scenes at a time: one plan each, carried out to its end and judged by `rewards`,
    as are the baselines' and the expert's. For plans that are made anew on the way, see `ClosedLoopEvaluator`.
    `before_training`: also before the first stage.
    """

    source: Source
    simulator: Simulator
    rewards: RewardSum
    task: str = "drive"
    scenes: int | None = None
    max_new_tokens: int = 64
    batch_size: int = 32
    before_training: bool = False

    def evaluate(
        self, model: LanguageActionModel, data: DataPipeline, dp_rank: DataRank
    ) -> tuple[Results, list[Example]]:
        """Results over all ranks, and this one's scenes with the plans; the model is left as it was."""
        methods = (MODEL, *TRAJECTORY_BASELINES, EXPERT)
        scores = {name: SceneMeasures(dict.fromkeys((*MEASURES, "reward", "parse_failure"), mean)) for name in methods}
        for score in scores.values():
            score.to(next(model.parameters()).device)
        driver, examples = Driver(model, data, self.task, self.max_new_tokens), list[Example]()
        for part in batches_of_rank(list(read_scenes(self.source, self.scenes)), dp_rank, self.batch_size):
            answers = driver.answer(part)
            if dp_rank.is_writer:
                self._judge(scores, driver, part, answers)
            said = zip(part, *answers, strict=True)
            examples += [Example(scene).with_answer(self.task, text, plan) for scene, text, plan in said]
        self.rewards.settle(lambda errors: all_gather_objects(errors, dp_rank.group))
        section = {name: known(score.compute()) for name, score in scores.items()}
        return {SIMULATION: {name: sliced for name, sliced in section.items() if sliced}}, examples

    def _judge(
        self, scores: dict[str, SceneMeasures], driver: Driver, scenes: Sequence[Scene], answers: Answers
    ) -> None:
        """Add what comes of the model's plans, and of the others'."""
        for name, score in scores.items():
            others = [_other(name, scene, one) for scene, one in zip(scenes, answers.plans, strict=True)]
            said = answers.texts if name == MODEL else [""] * len(scenes)
            thoughts = [driver.task.thought(text) if name == MODEL else None for text in said]
            found = roll_out(self.simulator, scenes, said, thoughts, [0] * len(scenes), others)
            for scene, measures in zip(scenes, self._measured(found), strict=True):
                score.update(scene, measures)

    def _measured(self, rollouts: RolloutBatch) -> Iterator[dict[str, float]]:
        """The measures of each plan; one that did not parse counts as the worst in every event."""
        rewards = self.rewards(rollouts)
        for row, measures in enumerate(measures_by_scene(rollouts.episodes)):
            reward = float(rewards.total[row]) if rewards.kept[row] else float("nan")
            failed = rollouts.plans[row] is None
            if failed:
                worst = {"progress": 0.0, "comfortable": 0.0, "speed_compliance": 0.0, "planning_score": 0.0}
                measures = {name: value if value != value else worst.get(name, 1.0) for name, value in measures.items()}
            yield measures | {"reward": reward, "parse_failure": float(failed)}


def _other(name: str, scene: Scene, plan: Trajectory | None) -> Trajectory | None:
    """The plan of method `name`: the model's own `plan`, the expert's, or a baseline's."""
    if name == MODEL:
        return plan
    return scene.future if name == EXPERT else TRAJECTORY_BASELINES[name](scene)
