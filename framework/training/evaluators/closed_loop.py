"""Lets a model drive held-out scenes in closed loop, shown again and again what has become of them."""

from __future__ import annotations

from dataclasses import dataclass, field

from framework.data.pipeline import DataPipeline
from framework.data.stream.mixture import Source, read_scenes
from framework.evaluation.examples import Example
from framework.evaluation.slices import SceneMeasures, mean
from framework.evaluation.suite import MODEL, SIMULATION, Results, known
from framework.model.language_action import LanguageActionModel
from framework.parallel.mesh import DataRank
from framework.scene.types import Scene
from framework.scene.world.rig import TINY_RIG, Rig
from framework.simulation.closed_loop import MEASURES, measures_by_scene
from framework.simulation.scenes import batch_scenes
from framework.simulation.simulator import Environment, SceneMaker
from framework.training.evaluators.base import batches_of_rank
from framework.training.evaluators.driver import Driver, driven


@dataclass(frozen=True)
class ClosedLoopEvaluator:
    """Scenes driven in `environment` for `steps` periods, `rows` at a time: the model answers to `task` in at most
    `max_new_tokens`, greedily, and is shown the scene anew after `replan_every` of the plan's periods.

    They are those of `source` (the first `scenes`; None: all), or, without one, `scenes` that the environment makes.
    Scenes of the built-in world are seen through `rig`; others later on without sensors. A scene's `parse_failure` is
    the share of its answers that spell no plan. `before_training`: also before the first stage.

    Raises `ValueError` for a number below 1, and where neither source nor environment has scenes.
    """

    environment: Environment
    source: Source | None = None
    task: str = "drive"
    scenes: int | None = None
    max_new_tokens: int = 64
    batch_size: int = 32
    replan_every: int = 4
    steps: int = 20
    rig: Rig = field(default=TINY_RIG)
    before_training: bool = False

    def __post_init__(self) -> None:
        if min(self.replan_every, self.steps, self.batch_size) < 1:
            counts = f"replan_every {self.replan_every}, steps {self.steps}, rows {self.batch_size}"
            raise ValueError(f"examination: {counts}; give 1 or more for each")
        if self.source is None and (self.scenes is None or not isinstance(self.environment, SceneMaker)):
            raise ValueError(
                f"examination: {type(self.environment).__name__} is given no scenes; give source, or an environment "
                "that makes its own and the number of scenes"
            )

    def evaluate(
        self, model: LanguageActionModel, data: DataPipeline, dp_rank: DataRank
    ) -> tuple[Results, list[Example]]:
        """Results over all ranks, and this one's scenes with the opening plans; the model is left as it was."""
        score = SceneMeasures(dict.fromkeys((*MEASURES, "parse_failure"), mean))
        score.to(next(model.parameters()).device)
        driver, examples = Driver(model, data, self.task, self.max_new_tokens), list[Example]()
        for part in batches_of_rank(self._all_scenes(), dp_rank, self.batch_size):
            batch = batch_scenes(part)
            episodes, looks = driven(self.environment, part, batch, driver, self.steps, self.replan_every, self.rig)
            for row, (scene, measures) in enumerate(zip(part, measures_by_scene(episodes), strict=True)):
                failed = sum(look.plans[row] is None for look in looks) / len(looks)
                if dp_rank.is_writer:
                    score.update(scene, measures | {"parse_failure": failed})
                examples.append(Example(scene).with_answer(self.task, looks[0].texts[row], looks[0].plans[row]))
        sliced = known(score.compute())
        return {SIMULATION: {MODEL: sliced} if sliced else {}}, examples

    def _all_scenes(self) -> list[Scene]:
        if self.source is not None:
            return list(read_scenes(self.source, self.scenes))
        assert isinstance(self.environment, SceneMaker)
        assert self.scenes is not None
        return list(self.environment.scenes(range(self.scenes)))
