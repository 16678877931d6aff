"""Closed-loop rollouts: the policy drives on from an answer, and rewards judge where that leads."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

from framework.recipe.component import component
from framework.recipe.ranges import Batch, Seconds
from framework.scene.world.rig import TINY_RIG, Rig
from framework.simulation.episode import whole_periods
from framework.simulation.rewards.rollouts import RolloutBatch
from framework.simulation.simulator import Simulator
from framework.training.evaluators.driver import Answers, DrivingPolicy, drive_closed_loop
from framework.training.rl.metrics import MeanMetrics


@component
@dataclass(frozen=True)
class Continuation:
    """Rewards an answer by where it leads when the policy drives on: the simulator carries out the plan for a while;
    then the policy repeatedly sees the new scene, plans again and drives that plan, until the first plan would end.

    Only the first answer is credited, with a Monte Carlo estimate of its value under the policy that continues from it
    (Sutton and Barto, Reinforcement Learning, 2nd edition, section 8.10: rollout algorithms). The later plans are
    decoded greedily, by the answer's own task. A replan that does not parse brakes, and counts as `replans/unparsed`.

    Raises `ValueError` for a number that is not above 0.
    """

    replan_s: Seconds = 1.0
    """Seconds between plans, a multiple of the scenes' period. The default is a fifth of the plan's horizon."""
    batch_size: Batch = 32
    """Scenes per call to the engine."""
    rig: Rig = field(default=TINY_RIG)
    """Sensors through which later scenes of the built-in world are seen. Other scenes have no sensors later on."""

    def __post_init__(self) -> None:
        if self.replan_s <= 0 or self.batch_size < 1:
            raise ValueError(
                f"stage.continuation: replan_s {self.replan_s:g}, batch_size {self.batch_size}; give seconds "
                "above 0 and 1 or more"
            )

    def __call__(
        self, rollouts: RolloutBatch, simulator: Simulator, driver: DrivingPolicy, metrics: MeanMetrics
    ) -> RolloutBatch:
        """Returns `rollouts`, which were driven in open loop, with their closed-loop episodes. `driver` answers for
        their scenes, one for one. Where the plans end before the first replan, the episodes stay.

        Ranks may have different numbers of answers (see `framework.parallel.sharding.unsharded`); the ranks of one
        tensor-parallel group have the same. Raises `ValueError` where `replan_s` is no multiple of the scenes' period.
        """
        scenes, steps = rollouts.episodes.scenes, rollouts.episodes.underway.shape[1]
        replan_every = whole_periods("stage.continuation.replan_s", self.replan_s, scenes.rate_hz)
        if replan_every >= steps:
            return rollouts
        opening = Answers(list(rollouts.texts), list(rollouts.plans))
        episodes, answers = drive_closed_loop(
            simulator, rollouts.scenes, scenes, driver, steps, replan_every, self.rig, opening
        )
        parsed = [row for row, plan in enumerate(rollouts.plans) if plan is not None]
        unparsed = [float(replan.plans[row] is None) for replan in answers[1:] for row in parsed]
        metrics.add("replans/unparsed", unparsed)
        return dataclasses.replace(rollouts, episodes=episodes)
