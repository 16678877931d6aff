"""The ego vehicle's past as tokens."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from framework.model.encoder import Projector


class EgoEncoder(nn.Module):
    """One token for each history state, from its motion and its place in the past.

    Rows are (x m, y m, heading rad, speed m/s), oldest first, the last one being now. `span` (m) and `speed` (m/s)
    bring the inputs to unit scale; at most `states` rows.
    """

    def __init__(
        self, hidden: int, features: int = 64, states: int = 32, span: float = 30.0, speed: float = 15.0
    ) -> None:
        super().__init__()
        self.states, self.span, self.speed = states, span, speed
        self.motion = nn.Linear(5, features)
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
        motion = torch.stack([x / self.span, y / self.span, heading.cos(), heading.sin(), speed / self.speed], dim=-1)
        # Counted from the present, so that the newest state has the same embedding however long the history is.
        age = mask.long().flip(1).cumsum(1).flip(1).sub(1).clamp(min=0)
        return self.projector(
            torch.nn.functional.gelu(self.motion(motion.to(self.motion.weight.dtype)) + self.age(age))
        ), mask
