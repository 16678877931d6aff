"""Where an answer leads when the policy goes on driving: closed loop as what rewards judge."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

from framework.scene.world.rig import TINY_RIG, Rig
from framework.simulation.rewards.rollouts import RolloutBatch
from framework.simulation.simulator import Simulator
from framework.training.evaluators.driver import Answers, Asked, driven
from framework.training.rl.metrics import Means


@dataclass(frozen=True)
class Continuation:
    """An answer's plan is carried out for `replan_s` seconds; then, and as often again, the policy is shown what has
    become of the scene, asked by the same task, greedily, `batch_size` scenes at a time, and its plan is carried out,
    until the first would have ended.

    The answer alone is credited: a Monte Carlo estimate of its worth under the policy that goes on from it (Sutton and
    Barto, Reinforcement Learning, 2nd edition, section 8.10: rollout algorithms). Replans that spell no plan brake and
    are counted as `replans/unparsed`. Later on, scenes of the built-in world are seen through `rig`, others without
    sensors.

    Raises `ValueError` for a number that is not above 0.
    """

    replan_s: float = 1.0
    batch_size: int = 32
    rig: Rig = field(default=TINY_RIG)

    def __post_init__(self) -> None:
        if self.replan_s <= 0 or self.batch_size < 1:
            raise ValueError(
                f"stage.continuation: replan_s {self.replan_s:g}, batch_size {self.batch_size}; give seconds "
                "above 0 and 1 or more"
            )

    def __call__(self, rollouts: RolloutBatch, simulator: Simulator, driver: Asked, means: Means) -> RolloutBatch:
        """`rollouts`, carried out in open loop, with the episodes that `driver` makes of them; those in open loop where
        no plan is made anew. `driver` answers for the scenes of `rollouts`, one for one.

        RankGroup may have as many answers as they like (see `framework.parallel.sharding.unsharded`); those of a model
        cut by tensor parallelism have the same. Raises `ValueError` where `replan_s` is no whole number of the scenes'
        periods.
        """
        scenes, steps = rollouts.episodes.scenes, rollouts.episodes.underway.shape[1]
        every = self._periods(scenes.rate_hz)
        if every >= steps:
            return rollouts
        opening = Answers(list(rollouts.texts), list(rollouts.plans))
        found, looks = driven(simulator, rollouts.scenes, scenes, driver, steps, every, self.rig, opening)
        begun = [row for row, plan in enumerate(rollouts.plans) if plan is not None]
        means.add("replans/unparsed", [float(look.plans[row] is None) for look in looks[1:] for row in begun])
        return dataclasses.replace(rollouts, episodes=found)

    def _periods(self, rate_hz: float) -> int:
        periods = self.replan_s * rate_hz
        if abs(periods - round(periods)) > 1e-6:
            raise ValueError(
                f"stage.continuation.replan_s: {self.replan_s:g} s are {periods:g} of the scenes' periods; give a "
                f"multiple of {1 / rate_hz:g} s"
            )
        return round(periods)
