"""The ego vehicle's past as tokens."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from framework.model.encoders.base import Projector

TURN = 0.05
"""A usual change of heading from one state to the next (rad)."""
GAIN = 0.5
"""A usual change of speed from one state to the next (m/s)."""


class EgoEncoder(nn.Module):
    """One token for each history state, from its motion, how that changed, and its place in the past.

    Rows are (x m, y m, heading rad, speed m/s) at one rate, oldest first, the last one being now. `span` (m) and
    `speed` (m/s) bring the inputs to unit scale; at most `states` rows. The changes of heading and speed since the
    state before (zero for the oldest) are given, not left to attention: acceleration and curvature are what an action
    is made of, and the differences are a hundredth of the values.
    """

    channels = 4

    def __init__(
        self, hidden: int, features: int = 64, states: int = 32, span: float = 30.0, speed: float = 15.0
    ) -> None:
        super().__init__()
        self.states, self.span, self.speed = states, span, speed
        self.motion = nn.Linear(7, features)
        self.age = nn.Embedding(states, features)
        self.projector = Projector(features, hidden)

    def forward(self, values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """`values` `(m, states, 4)`, `mask` `(m, states)` -> `(m, states, hidden)` and `mask`. Raises on more than
        `states` rows.
        """
        if values.shape[1] > self.states:
            raise ValueError(
                f"sensor ego: {values.shape[1]} history states, the encoder has room for {self.states}: "
                "raise model.encoders.ego.states or shorten the history"
            )
        x, y, heading, speed = values.unbind(dim=-1)
        _, _, turn, gain = (values - torch.cat([values[:, :1], values[:, :-1]], dim=1)).unbind(dim=-1)
        place = [x / self.span, y / self.span, heading.cos(), heading.sin(), speed / self.speed]
        # The sine, because headings jump by a full turn at pi.
        motion = torch.stack([*place, turn.sin() / TURN, gain / GAIN], dim=-1).to(self.motion.weight.dtype)
        # Counted from the present, so that the newest state has the same embedding however long the history is.
        age = mask.long().flip(1).cumsum(1).flip(1).sub(1).clamp(min=0)
        return self.projector(torch.nn.functional.gelu(self.motion(motion) + self.age(age))), mask
