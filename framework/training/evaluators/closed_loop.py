"""Evaluates a model that drives held-out scenes in closed loop: it replans on the way from what it then sees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from framework.data.pipeline import DataPipeline
from framework.data.stream.mixture import Source, read_scenes
from framework.evaluation.examples import Example
from framework.evaluation.results import MODEL, SIMULATION, Results
from framework.evaluation.slices import SceneMeasures, mean, share_if_any
from framework.evaluation.suite import drop_nan
from framework.model.language_action import LanguageActionModel
from framework.parallel.mesh import DataRank
from framework.recipe.component import component
from framework.recipe.ranges import Batch, PositiveCount, Steps, Tokens
from framework.scene.check import PLAN_FAULTS
from framework.scene.types import Scene, Trajectory
from framework.scene.world.rig import TINY_RIG, Rig
from framework.simulation.closed_loop import MEASURES, measures_by_scene
from framework.simulation.episode import Episodes
from framework.simulation.observe import replan_fault
from framework.simulation.scenes import batch_scenes
from framework.simulation.simulator import Environment, SceneMaker
from framework.training.evaluators.base import DRY_RUN_SCENES, LeftOut, batches_of_rank, first_scenes
from framework.training.evaluators.driven import driven_episodes
from framework.training.evaluators.driver import Answers, Driver, drive_closed_loop, drive_task


@component
@dataclass(frozen=True)
class ClosedLoopEvaluator:
    """Lets the model drive scenes in closed loop and measures the episodes.

    The model answers greedily and replans every `replan_every` periods. Scenes of the built-in world are rendered again
    each time; other scenes have no sensors after the start. A scene's `parse_failure` is the share of its answers that
    spell no plan that can be driven. A scene that cannot be driven is left out, named in the log and counted as
    `left_out`.

    Raises `ValueError` for a number below 1, and if neither source nor environment provides scenes.
    """

    environment: Environment
    """Carries out the plans."""
    source: Source | None = None
    """The scenes; None for scenes that the environment makes."""
    task: str = "drive"
    """The task that asks for a plan: drive or reason."""
    scenes: PositiveCount | None = None
    """Number of scenes, the first of the source; None for all of them. Required without a source."""
    max_new_tokens: Tokens = 64
    """Token limit of an answer."""
    batch_size: Batch = 32
    """Scenes that drive at a time."""
    replan_every: Steps = 4
    """Periods (of the scenes' rate, 0.25 s at 4 Hz) between two plans."""
    steps: Steps = 20
    """Length of an episode, in periods."""
    rig: Rig = field(default=TINY_RIG)
    """Cameras through which scenes of the built-in world are rendered."""
    before_training: bool = False
    """Whether to run before the first stage too."""

    def __post_init__(self) -> None:
        if min(self.replan_every, self.steps, self.batch_size) < 1:
            counts = f"replan_every {self.replan_every}, steps {self.steps}, batch_size {self.batch_size}"
            raise ValueError(f"evals: {counts}; give 1 or more for each")
        if self.source is None and (self.scenes is None or not isinstance(self.environment, SceneMaker)):
            raise ValueError(
                f"evals: {type(self.environment).__name__} is given no scenes; give source, or an environment that "
                "makes its own and the number of scenes"
            )

    def evaluate(
        self, model: LanguageActionModel, data: DataPipeline, dp_rank: DataRank
    ) -> tuple[Results, list[Example]]:
        """See `Evaluator`. The examples show each scene's first plan."""
        rare = dict.fromkeys((f"fault/{kind}" for kind in PLAN_FAULTS), share_if_any)
        score = SceneMeasures(dict.fromkeys((*MEASURES, "parse_failure"), mean) | rare)
        score.to(next(model.parameters()).device)
        driver, examples = Driver(model, data, self.task, self.max_new_tokens), list[Example]()
        left_out = LeftOut()
        for scenes in batches_of_rank(self._all_scenes(), dp_rank, self.batch_size):
            for rows, (episodes, answers) in left_out.parts(scenes, partial(self._drive, driver, scenes)):
                driven = driven_episodes(episodes) if dp_rank.is_writer else []
                for row, measures in enumerate(measures_by_scene(episodes)):
                    scene, plans = scenes[rows[row]], [each.plans[row] for each in answers]
                    example = Example(scene).with_answer(self.task, answers[0].texts[row], plans[0])
                    if dp_rank.is_writer:
                        measures |= self._failures(plans, episodes.scenes.rate_hz)
                        score.update(scene, measures)
                        example = replace(example.with_measures(SIMULATION, measures), driven=driven[row])
                    examples.append(example)
        sliced = drop_nan(score.compute())
        results: Results = {SIMULATION: {MODEL: sliced} if sliced else {}}
        return left_out.counted(results, SIMULATION, dp_rank.group), examples

    def dry_run(self, data: DataPipeline, processor: Any) -> None:
        """See `DryRunnable`: the first prompts are rendered, and the scenes laid out for the simulator."""
        drive_task(data, self.task)
        scenes = (
            first_scenes(self.source, self.scenes) if self.source is not None else self._all_scenes()[:DRY_RUN_SCENES]
        )
        for _ in data.prompts(scenes, self.task, processor, rows=1):
            pass
        batch_scenes(scenes)

    def _drive(self, driver: Driver, scenes: Sequence[Scene], rows: list[int]) -> tuple[Episodes, list[Answers]]:
        """Drive the scenes `rows`. Raises `SceneError` where one cannot be driven."""
        chosen = [scenes[row] for row in rows]
        batch = batch_scenes(chosen)
        return drive_closed_loop(self.environment, chosen, batch, driver, self.steps, self.replan_every, self.rig)

    def _failures(self, plans: Sequence[Trajectory | None], rate_hz: float) -> dict[str, float]:
        """The shares of one scene's answers that spell no plan that can be driven, in all and by fault."""
        faults = [None if plan is None else replan_fault(plan, self.replan_every, rate_hz) for plan in plans]
        failed = sum(plan is None or fault is not None for plan, fault in zip(plans, faults, strict=True))
        shares = {f"fault/{kind}": faults.count(kind) / len(faults) for kind in PLAN_FAULTS}
        return {"parse_failure": failed / len(faults)} | shares

    def _all_scenes(self) -> list[Scene]:
        if self.source is not None:
            return list(read_scenes(self.source, self.scenes))
        assert isinstance(self.environment, SceneMaker)
        assert self.scenes is not None
        return list(self.environment.scenes(range(self.scenes)))
