"""The other road users of a batch, and the simplest traffic model: replay of their logs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Protocol

import torch
from torch import Tensor

from framework.recipe.component import component
from framework.simulation.scenes import SceneBatch


@dataclass(frozen=True, slots=True)
class Agents:
    """The agents of a batch at one time."""

    poses: Tensor
    """`(b, n, 3)`: x, y (m), heading (rad) of the centres, in the scene's ego frame at the current time."""
    velocities: Tensor
    """`(b, n, 2)` (m/s), over ground."""
    stations: Tensor
    """`(b, n)` (m): the distance covered along the agent's log."""
    present: Tensor
    """`(b, n)` bool: False where the agent is not there, or padding."""


class Traffic(Protocol):
    """Advances the agents of a batch."""

    def advance(self, scenes: SceneBatch, agents: Agents, step: int, ego: Tensor, ego_speed: Tensor) -> Agents:
        """The agents at `step` + 1.

        Args:
            scenes: the batch.
            agents: the agents at `step`.
            step: the current step.
            ego: the ego's body `(b, 5)` at `step`.
            ego_speed: `(b,)` (m/s), at `step`.
        """
        ...


@component
class Replay:
    """Every agent follows its log, whatever the ego does."""

    def advance(self, scenes: SceneBatch, agents: Agents, step: int, ego: Tensor, ego_speed: Tensor) -> Agents:
        """See `Traffic`."""
        return logged(scenes, step + 1)


def logged(scenes: SceneBatch, step: int) -> Agents:
    """The agents of the logs at `step`; velocities are those of the following period."""
    period = min(step, scenes.steps - 1)
    velocities = (scenes.logs[:, :, period + 1, :2] - scenes.logs[:, :, period, :2]) * scenes.rate_hz
    return Agents(
        scenes.logs[:, :, step].clone(), velocities, scenes.stations[..., step].clone(), scenes.present[:, :, step]
    )


def stack_agents(moments: Sequence[Agents]) -> Agents:
    """The agents at `t` times as one, whose tensors are `(b, t, n, ...)`."""
    return Agents(*(torch.stack([getattr(one, field.name) for one in moments], dim=1) for field in fields(Agents)))
