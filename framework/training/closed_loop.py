"""Lets a model drive held-out scenes in closed loop, shown again and again what has become of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from framework.data.feed import Feed
from framework.data.mixture import Source, read_scenes
from framework.evaluation.report import Example
from framework.evaluation.slices import SceneMeasures, mean
from framework.evaluation.suite import MODEL, SIMULATION, Results, known
from framework.model.assembly import LanguageActionModel
from framework.parallel.mesh import DataRank
from framework.rollout.closed_loop import MEASURES, measures_by_scene
from framework.rollout.episode import Episodes, drive
from framework.rollout.observe import policy_planner
from framework.rollout.scenes import batch_scenes
from framework.rollout.simulator import Environment, SceneMaker
from framework.scene.types import Scene, Trajectory
from framework.scene.world.generate import DATASET
from framework.scene.world.rig import TINY_RIG, Rig
from framework.training.driver import Answers, Driver


@dataclass(frozen=True)
class ClosedLoop:
    """Scenes driven in `environment` for `steps` periods, `rows` at a time: the model answers to `task` in at most
    `max_new_tokens`, greedily, and is shown the scene anew after `replan_every` of the plan's periods.

    They are those of `source` (the first `scenes`; None: all), or, without one, `scenes` that the environment makes.
    Scenes of the built-in world are seen through `rig`; others later on without sensors. A scene's `parse_failure` is
    the share of its answers that spell no plan. `untrained`: also before the first stage.

    Raises `ValueError` for a number below 1, and where neither source nor environment has scenes.
    """

    environment: Environment
    source: Source | None = None
    task: str = "drive"
    scenes: int | None = None
    max_new_tokens: int = 64
    rows: int = 32
    replan_every: int = 4
    steps: int = 20
    rig: Rig = field(default=TINY_RIG)
    untrained: bool = False

    def __post_init__(self) -> None:
        if min(self.replan_every, self.steps, self.rows) < 1:
            counts = f"replan_every {self.replan_every}, steps {self.steps}, rows {self.rows}"
            raise ValueError(f"examination: {counts}; give 1 or more for each")
        if self.source is None and (self.scenes is None or not isinstance(self.environment, SceneMaker)):
            raise ValueError(
                f"examination: {type(self.environment).__name__} is given no scenes; give source, or an environment "
                "that makes its own and the number of scenes"
            )

    def examine(self, model: LanguageActionModel, data: Feed, place: DataRank) -> tuple[Results, list[Example]]:
        """Results over all ranks, and this one's scenes with the opening plans; the model is left as it was."""
        score = SceneMeasures(dict.fromkeys((*MEASURES, "parse_failure"), mean))
        score.to(next(model.parameters()).device)
        driver = Driver(model, data, self.task, self.max_new_tokens)
        examples, training = list[Example](), model.training
        model.eval()
        scenes = self._all_scenes()[place.rank :: place.world]
        for start in range(0, len(scenes), self.rows):
            part = scenes[start : start + self.rows]
            episodes, looks = self._driven(driver, part)
            for row, (scene, measures) in enumerate(zip(part, measures_by_scene(episodes), strict=True)):
                failed = sum(look.plans[row] is None for look in looks) / len(looks)
                if place.writes:
                    score.update(scene, measures | {"parse_failure": failed})
                examples.append(Example(scene).with_answer(self.task, looks[0].texts[row], looks[0].plans[row]))
        model.train(training)
        sliced = known(score.compute())
        return {SIMULATION: {MODEL: sliced} if sliced else {}}, examples

    def _all_scenes(self) -> list[Scene]:
        if self.source is not None:
            return list(read_scenes(self.source, self.scenes))
        assert isinstance(self.environment, SceneMaker)
        assert self.scenes is not None
        return list(self.environment.scenes(range(self.scenes)))

    def _driven(self, driver: Driver, scenes: Sequence[Scene]) -> tuple[Episodes, list[Answers]]:
        """How `scenes` were driven, and what was answered at each look at them."""
        looks = list[Answers]()

        def policy(seen: Sequence[Scene]) -> list[Trajectory | None]:
            looks.append(driver.answer(seen))
            return looks[-1].plans

        built_in = all(scene.provenance.get("dataset") == DATASET for scene in scenes)
        planner = policy_planner(scenes, policy, self.rig if built_in else None)
        return drive(self.environment, batch_scenes(scenes), planner, self.steps, self.replan_every), looks
