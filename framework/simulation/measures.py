"""Measures of episodes, `(b,)` each: the parts of NAVSIM's planning score and the rules of the road.

Only the periods under way count. A rule that a scene cannot judge (no map, no limit, no light) counts as kept.
"""

from __future__ import annotations

import torch
from torch import Tensor

from framework.scene.comfort import COMFORT_BOUNDS, comfort_quantities
from framework.simulation.episode import Episodes
from framework.simulation.geometry import project_onto

MIN_TIME_TO_COLLISION_S = 0.95
"""A shorter time to collision is dangerous (NAVSIM)."""
MIN_PROGRESS_M = 5.0
"""Where the expert advances less than this, progress is 1 for everyone (NAVSIM)."""
ENOUGH_PROGRESS = 0.8
"""The share of the recorded path from which progress is full (AlpaSim)."""
MAX_OVERSPEED = 2.23
"""Mean excess speed (m/s) at which compliance reaches 0 (nuPlan)."""


def no_fault(episodes: Episodes) -> Tensor:
    """1 without an at-fault collision, 0.5 after hitting an object, 0 after hitting a road user."""
    return 1.0 - episodes.fault


def on_road(episodes: Episodes) -> Tensor:
    """1 while the body stays on the drivable surface, else 0."""
    return (~(episodes.off_road & episodes.underway).any(dim=1)).to(episodes.ego.dtype)


def least_time_to_collision(episodes: Episodes) -> Tensor:
    """The shortest time to collision (s): 0 after an at-fault collision, infinite where nothing was ever in the way."""
    shortest = torch.where(episodes.underway, episodes.time_to_collision, torch.inf).amin(dim=1)
    return torch.where(episodes.fault > 0, torch.zeros_like(shortest), shortest)


def keeps_time(episodes: Episodes) -> Tensor:
    """1 while the time to collision stays at or above `MIN_TIME_TO_COLLISION_S`, else 0."""
    return (least_time_to_collision(episodes) >= MIN_TIME_TO_COLLISION_S).to(episodes.ego.dtype)


def progress(episodes: Episodes) -> Tensor:
    """The ego's advance along the route as a fraction (0 to 1) of the expert's in as many periods; 1 where the expert
    hardly moved."""
    scenes, steps = episodes.scenes, episodes.ego.shape[1] - 1
    ends = torch.stack(
        [scenes.initial[:, :2], episodes.ego[:, -1, :2], scenes.expert[:, min(steps, scenes.steps) - 1, :2]], dim=1
    )
    station, _, _ = project_onto(ends, scenes.route[:, None])
    driven, expected = station[:, 1] - station[:, 0], station[:, 2] - station[:, 0]
    fraction = (driven / expected.clamp(min=MIN_PROGRESS_M)).clamp(0, 1)
    return torch.where(expected < MIN_PROGRESS_M, torch.ones_like(fraction), fraction)


def comforts(episodes: Episodes) -> Tensor:
    """Whether each of nuPlan's bounds holds throughout, `(b, 6)` bool, in the order of `COMFORT_BOUNDS`."""
    quantities = comfort_quantities(episodes.ego[:, 0], episodes.ego[:, 1:], episodes.scenes.rate_hz)
    within = []
    for name, (low, high) in COMFORT_BOUNDS.items():
        values = quantities[name]
        underway = episodes.underway[:, episodes.underway.shape[1] - values.shape[1] :]
        within.append((((low <= values) & (values <= high)) | ~underway).all(dim=1))
    return torch.stack(within, dim=1)


def comfortable(episodes: Episodes) -> Tensor:
    """1 where all of nuPlan's comfort bounds hold, else 0."""
    return comforts(episodes).all(dim=1).to(episodes.ego.dtype)


def speed_compliance(episodes: Episodes) -> Tensor:
    """1 minus the mean excess over the speed limit divided by `MAX_OVERSPEED`, at least 0 (nuPlan)."""
    excess = (episodes.ego[:, 1:, 3] - episodes.scenes.speed_limit[:, None]).clamp(min=0) * episodes.underway
    mean = excess.sum(dim=1) / episodes.underway.sum(dim=1)
    return (1.0 - mean / MAX_OVERSPEED).clamp(min=0)


def heeds_lights(episodes: Episodes) -> Tensor:
    """0 where the ego's front crossed a closed stop line, else 1."""
    return (~episodes.ran_light).to(episodes.ego.dtype)


def planning_score(episodes: Episodes) -> Tensor:
    """NAVSIM's PDM score, 0 to 1 (Dauner et al. 2024, arXiv 2406.15349, equation 1).

    no_fault x on_road x (5 keeps_time + 2 comfortable + 5 progress) / 12.
    """
    weighted = 5 * keeps_time(episodes) + 2 * comfortable(episodes) + 5 * progress(episodes)
    return no_fault(episodes) * on_road(episodes) * weighted / 12


def recorded_progress(episodes: Episodes) -> Tensor:
    """Where on the whole recorded path the ego's rear axle ends, as a share of its length, 0 to 1; 1 where the
    recording covers less than `MIN_PROGRESS_M` (AlpaSim).
    """
    scenes = episodes.scenes
    path = torch.cat([scenes.initial[:, None, :2], scenes.expert[..., :2]], dim=1)
    station, _, _ = project_onto(torch.stack([path[:, -1], episodes.ego[:, -1, :2]], dim=1), path[:, None])
    length = path.diff(dim=1).norm(dim=-1).sum(dim=1)
    share = (station[:, 1] / length.clamp(min=MIN_PROGRESS_M)).clamp(0, 1)
    return torch.where(length < MIN_PROGRESS_M, torch.ones_like(share), share)


def recorded_distance(episodes: Episodes) -> Tensor:
    """The RMSE (m) of the driven positions against the recorded ones, over the periods that both have (AlpaGym)."""
    steps = min(episodes.ego.shape[1] - 1, episodes.scenes.steps)
    gaps = episodes.ego[:, 1 : steps + 1, :2] - episodes.scenes.expert[:, :steps, :2]
    return gaps.square().sum(dim=-1).mean(dim=1).sqrt()


def scene_score(episodes: Episodes) -> Tensor:
    """AlpaSim's score of a scene, 0 to 1: 0 after a collision that the ego caused or a road departure, else the
    recorded progress, full from `ENOUGH_PROGRESS` on.
    """
    share = (recorded_progress(episodes) / ENOUGH_PROGRESS).clamp(max=1)
    return torch.where(episodes.fault > 0, torch.zeros_like(share), share) * on_road(episodes)
