"""The other road users of a batch, and the simplest way that they move: as in their logs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from framework.simulation.scenes import SceneBatch


@dataclass(frozen=True, slots=True)
class Agents:
    """The agents of a batch at one time.

    `poses` `(b, n, 3)`: x, y, heading; `velocities` `(b, n, 2)` (m/s) over ground; `stations` `(b, n)`: how far (m)
    they have come along their logs; `present` `(b, n)` bool.
    """

    poses: Tensor
    velocities: Tensor
    stations: Tensor
    present: Tensor


class Traffic(Protocol):
    """Moves the agents of a batch."""

    def advance(self, scenes: SceneBatch, agents: Agents, step: int, ego: Tensor, ego_speed: Tensor) -> Agents:
        """The agents at `step` + 1, from those at `step` and the ego's body `(b, 5)` and speed `(b,)` there."""
        ...


class Replay:
    """Everybody does what the log shows, whatever the ego does."""

    def advance(self, scenes: SceneBatch, agents: Agents, step: int, ego: Tensor, ego_speed: Tensor) -> Agents:
        """See `Traffic`."""
        return logged(scenes, step + 1)


def logged(scenes: SceneBatch, step: int) -> Agents:
    """The agents as their logs show them at `step`; velocities are those of the period that follows."""
    period = min(step, scenes.steps - 1)
    velocities = (scenes.logs[:, :, period + 1, :2] - scenes.logs[:, :, period, :2]) * scenes.rate_hz
    return Agents(
        scenes.logs[:, :, step].clone(), velocities, scenes.stations[..., step].clone(), scenes.present[:, :, step]
    )
