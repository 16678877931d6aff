"""What was driven in a simulator, as reports draw it."""

from __future__ import annotations

from framework.evaluation.examples import DrivenScene
from framework.scene.episode_picture import RoadUsers
from framework.simulation.episode import Episodes


def driven_episodes(episodes: Episodes) -> list[DrivenScene]:
    """Each episode with the road users of its log, on the CPU. Where traffic reacts, they may have driven otherwise."""
    scenes, moments = episodes.scenes, episodes.ego.shape[1]
    return [
        DrivenScene(
            episodes.ego[row].double().cpu().numpy(),
            RoadUsers(
                scenes.logs[row, :, :moments].double().cpu().numpy(),
                scenes.sizes[row].double().cpu().numpy(),
                scenes.present[row, :, :moments].cpu().numpy(),
            ),
            scenes.rate_hz,
        )
        for row in range(len(episodes))
    ]
