"""Rewards that benchmarks of closed-loop driving give."""

from __future__ import annotations

from torch import Tensor

from framework.recipe.component import component
from framework.recipe.ranges import Metres, Weight
from framework.simulation import measures
from framework.simulation.rewards.rollouts import RolloutBatch


@component
class AlpaGym:
    """AlpaGym's reward of an episode, by default its preset `progress_safety`.

    `progress` x recorded progress - `collision` for any collision - `off_road` for a road departure - `distance` x
    RMSE (m) to the recording. Nothing is cut after a collision. An answer that does not parse gets no progress, both
    penalties, and the distance `miss_m`.

    Args:
        progress: the worth of driving the whole recorded path.
        collision: the penalty of meeting anybody, at fault or not.
        off_road: the penalty of leaving the drivable surface.
        distance: the penalty of each metre of distance.
        miss_m: the distance (m) of an answer that does not parse.
    """

    def __init__(
        self,
        progress: Weight = 1.0,
        collision: Weight = 10.0,
        off_road: Weight = 5.0,
        distance: Weight = 0.01,
        miss_m: Metres = 100.0,
    ) -> None:
        self.progress, self.collision, self.off_road, self.distance = progress, collision, off_road, distance
        self.span = progress + collision + off_road + distance * miss_m
        self.worst = -collision - off_road - distance * miss_m

    def __call__(self, rollouts: RolloutBatch) -> Tensor:
        """See `Reward`."""
        episodes = rollouts.episodes
        value = (
            self.progress * measures.recorded_progress(episodes)
            - self.collision * episodes.collided
            - self.off_road * (1 - measures.on_road(episodes))
            - self.distance * measures.recorded_distance(episodes)
        )
        return rollouts.graded(value, self.worst)


@component
class SceneScore:
    """AlpaSim's score of a scene, 0 to 1; see `measures.scene_score`."""

    def __call__(self, rollouts: RolloutBatch) -> Tensor:
        """See `Reward`."""
        return rollouts.graded(measures.scene_score(rollouts.episodes), 0.0)
