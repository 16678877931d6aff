"""What episodes are worth, `(b,)` each: the parts of NAVSIM's planning score, and the rules of the road.

Only what happened while an episode was under way counts. What a scene does not know (no map, no limit, no light) was
kept.
"""

from __future__ import annotations

import torch
from torch import Tensor

from framework.scene.comfort import COMFORT_BOUNDS, comfort_quantities
from framework.simulation.episode import Episodes
from framework.simulation.geometry import project

TIME_BOUND_S = 0.95
"""A time to collision shorter than this is dangerous (NAVSIM)."""
LEAST_WAY_M = 5.0
"""Where the expert gets less far than this, there is no progress to be made (NAVSIM)."""
OVERSPEED = 2.23
"""Mean speed (m/s) above the limit at which nothing is left of the compliance (nuPlan)."""


def no_fault(episodes: Episodes) -> Tensor:
    """1 without an at-fault collision, 0.5 where a thing was hit, 0 where a road user was."""
    return 1.0 - episodes.fault


def on_road(episodes: Episodes) -> Tensor:
    """1 where the body stayed on the drivable surface, else 0."""
    return (~(episodes.off_road & episodes.underway).any(dim=1)).to(episodes.ego.dtype)


def least_time_to_collision(episodes: Episodes) -> Tensor:
    """The shortest time to collision (s), 0 with a fault; infinite where nobody ever was in the way."""
    shortest = torch.where(episodes.underway, episodes.time_to_collision, torch.inf).amin(dim=1)
    return torch.where(episodes.fault > 0, torch.zeros_like(shortest), shortest)


def keeps_time(episodes: Episodes) -> Tensor:
    """1 where the time to collision never fell below `TIME_BOUND_S`, else 0."""
    return (least_time_to_collision(episodes) >= TIME_BOUND_S).to(episodes.ego.dtype)


def progress(episodes: Episodes) -> Tensor:
    """How far the ego got along the route, as a share (0 to 1) of how far the expert did in as many periods; 1 where
    the expert hardly moved."""
    scenes, steps = episodes.scenes, episodes.ego.shape[1] - 1
    ends = torch.stack(
        [scenes.initial[:, :2], episodes.ego[:, -1, :2], scenes.expert[:, min(steps, scenes.steps) - 1, :2]], dim=1
    )
    station, _, _ = project(ends, scenes.route[:, None])
    driven, expected = station[:, 1] - station[:, 0], station[:, 2] - station[:, 0]
    share = (driven / expected.clamp(min=LEAST_WAY_M)).clamp(0, 1)
    return torch.where(expected < LEAST_WAY_M, torch.ones_like(share), share)


def comforts(episodes: Episodes) -> Tensor:
    """Whether each of nuPlan's bounds (`COMFORT_BOUNDS`, in order) was kept, `(b, 6)` bool."""
    felt = comfort_quantities(episodes.ego[:, 0], episodes.ego[:, 1:], episodes.scenes.rate_hz)
    kept = []
    for name, (low, high) in COMFORT_BOUNDS.items():
        values = felt[name]
        counted = episodes.underway[:, episodes.underway.shape[1] - values.shape[1] :]
        kept.append((((low <= values) & (values <= high)) | ~counted).all(dim=1))
    return torch.stack(kept, dim=1)


def comfortable(episodes: Episodes) -> Tensor:
    """1 where all of nuPlan's bounds were kept, else 0."""
    return comforts(episodes).all(dim=1).to(episodes.ego.dtype)


def speed_compliance(episodes: Episodes) -> Tensor:
    """1 within the speed limit, less the mean excess as a share of `OVERSPEED`, at least 0 (nuPlan)."""
    excess = (episodes.ego[:, 1:, 3] - episodes.scenes.speed_limit[:, None]).clamp(min=0) * episodes.underway
    mean = excess.sum(dim=1) / episodes.underway.sum(dim=1)
    return (1.0 - mean / OVERSPEED).clamp(min=0)


def heeds_lights(episodes: Episodes) -> Tensor:
    """1 unless the ego's front crossed a stop line while that was closed, else 0."""
    return (~episodes.ran_light).to(episodes.ego.dtype)


def planning_score(episodes: Episodes) -> Tensor:
    """NAVSIM's PDM score (Dauner et al. 2024, arXiv 2406.15349, equation 1): no at-fault collision x drivable area kept
    x (5 time to collision + 2 comfort + 5 progress) / 12, 0 to 1."""
    weighted = 5 * keeps_time(episodes) + 2 * comfortable(episodes) + 5 * progress(episodes)
    return no_fault(episodes) * on_road(episodes) * weighted / 12
