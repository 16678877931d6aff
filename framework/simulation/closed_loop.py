"""The measures that closed-loop evaluation reports of each episode."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from framework.simulation import measures
from framework.simulation.episode import Episodes

MEASURES = (
    "collision", "at_fault_collision", "off_road", "red_light", "close_call", "progress", "comfortable",
    "speed_compliance", "planning_score", "scene_score",
)  # fmt: skip
"""The names of `episode_measures`, in order."""
BETTER_HIGH = frozenset({"progress", "comfortable", "speed_compliance", "planning_score", "scene_score"})
"""The measures whose worst value is 0; that of the others is 1."""


def episode_measures(episodes: Episodes) -> dict[str, Tensor]:
    """{measure: values `(b,)`} on the CPU; NaN where a scene cannot judge the measure (no map, no limit, no light).

    Events are 0 or 1: `collision` (any), `at_fault_collision`, `off_road`, `red_light`, `close_call` (a time to
    collision below a second), `comfortable`. `progress`, `speed_compliance`, `planning_score` (PDM) and `scene_score`
    (AlpaSim) are 0 to 1.
    Episodes that are `undriven` get the worst values.
    """
    scenes = episodes.scenes
    lit = scenes.red_lights.isfinite().any(dim=-1).any(dim=-1)
    values = {
        "collision": episodes.collided.to(episodes.ego.dtype),
        "at_fault_collision": (episodes.fault > 0).to(episodes.ego.dtype),
        "off_road": _known(1 - measures.on_road(episodes), scenes.mapped),
        "red_light": _known(1 - measures.heeds_lights(episodes), lit),
        "close_call": 1 - measures.keeps_time(episodes),
        "progress": measures.progress(episodes),
        "comfortable": measures.comfortable(episodes),
        "speed_compliance": _known(measures.speed_compliance(episodes), scenes.speed_limit.isfinite()),
        "planning_score": measures.planning_score(episodes),
        "scene_score": measures.scene_score(episodes),
    }
    return {
        name: torch.where(episodes.undriven & ~value.isnan(), worst(name), value).cpu()
        for name, value in values.items()
    }


def measures_by_scene(episodes: Episodes) -> Iterator[dict[str, float]]:
    """`episode_measures`, one dictionary per episode."""
    columns = episode_measures(episodes)
    for row in range(len(episodes)):
        yield {name: float(values[row]) for name, values in columns.items()}


def worst(measure: str) -> float:
    """The worst value of a measure."""
    return 0.0 if measure in BETTER_HIGH else 1.0


def _known(values: Tensor, known: Tensor) -> Tensor:
    return torch.where(known, values, torch.nan)
