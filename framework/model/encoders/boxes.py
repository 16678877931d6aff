"""The perception stack's boxes as tokens: one each."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from framework.model.encoders.base import Projector
from framework.scene.types import CLASSES

GEOMETRY = 9
"""Channels that are metres, radians or m/s; then come the class and the score."""


class BoxEncoder(nn.Module):
    """One token for each box: Fourier features of its geometry (Tancik et al. 2020, arXiv 2006.10739), its class and
    its score.

    Rows are (x, y, z, length, width, height, yaw, vx, vy, class index, score). `bands` wave lengths lie evenly, in
    logarithm, between `shortest` and `longest` metres: the short ones tell decimetres apart, the long ones order the
    whole range.
    """

    channels = 11

    def __init__(self, hidden: int, bands: int = 10, shortest: float = 0.5, longest: float = 128.0) -> None:
        super().__init__()
        self.bands, self.shortest, self.longest = bands, shortest, longest
        self.classes = nn.Embedding(len(CLASSES), 32)
        self.projector = Projector(2 * bands * GEOMETRY + GEOMETRY + 1 + 32, hidden)

    def forward(self, values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """`values` `(m, boxes, 11)`, `mask` `(m, boxes)` -> `(m, boxes, hidden)` and `mask`."""
        geometry, score = values[..., :GEOMETRY], values[..., GEOMETRY + 1 :]
        exponents = torch.linspace(math.log(self.longest), math.log(self.shortest), self.bands, device=values.device)
        angles = geometry[..., None] * (2 * math.pi / exponents.exp())
        waves = torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(-2)
        kinds = self.classes(values[..., GEOMETRY].long())
        return self.projector(torch.cat([waves, geometry / 20.0, score, kinds], dim=-1)), mask
