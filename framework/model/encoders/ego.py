"""Encoder of the ego vehicle's history, one token per state."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from framework.model.encoders.base import Projector
from framework.recipe.component import component
from framework.recipe.ranges import Metres, Speed, Steps, Width

TURN = 0.05
"""Typical change of heading between two states (rad)."""
GAIN = 0.5
"""Typical change of speed between two states (m/s)."""


@component
class EgoEncoder(nn.Module):
    """Encodes each state of the history by its motion, the change of its motion and its age.

    Rows are (x m, y m, heading rad, speed m/s) at a fixed rate, oldest first; the last is the current state. The
    changes of heading and speed since the previous state (zero for the oldest) are explicit inputs: actions consist of
    acceleration and curvature, and the differences are a hundredth of the values.

    Args:
        hidden: Width of the language model's embeddings.
        features: Width of the encoder.
        states: Largest number of rows.
        span: Scale of positions, in metres.
        speed: Scale of speeds, in m/s.
    """

    channels = 4

    def __init__(
        self, hidden: Width, features: Width = 64, states: Steps = 32, span: Metres = 30.0, speed: Speed = 15.0
    ) -> None:
        super().__init__()
        self.states, self.span, self.speed = states, span, speed
        self.motion = nn.Linear(7, features)
        self.age = nn.Embedding(states, features)
        self.projector = Projector(features, hidden)

    def forward(self, values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Encode `values` `(m, states, 4)` with `mask` `(m, states)` to `(m, states, hidden)`; `mask` is returned too.

        Raises `ValueError` for more rows than the encoder has room for.
        """
        if values.shape[1] > self.states:
            raise ValueError(
                f"sensor ego: {values.shape[1]} history states, the encoder has room for {self.states}: "
                "raise model.encoders.ego.states or shorten the history"
            )
        x, y, heading, speed = values.unbind(dim=-1)
        _, _, turn, gain = (values - torch.cat([values[:, :1], values[:, :-1]], dim=1)).unbind(dim=-1)
        pose = [x / self.span, y / self.span, heading.cos(), heading.sin(), speed / self.speed]
        # The sine, because headings wrap at pi.
        motion = torch.stack([*pose, turn.sin() / TURN, gain / GAIN], dim=-1).to(self.motion.weight.dtype)
        # Ages count from the current state, so that its embedding does not depend on the length of the history.
        age = mask.long().flip(1).cumsum(1).flip(1).sub(1).clamp(min=0)
        return self.projector(torch.nn.functional.gelu(self.motion(motion) + self.age(age))), mask
