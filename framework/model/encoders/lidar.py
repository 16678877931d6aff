"""Encoder of a LiDAR sweep: PointPillars (Lang et al. 2019, arXiv 1812.05784), pooled to a few tokens."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from framework.model.encoders.base import Projector
from framework.recipe.component import component
from framework.recipe.ranges import Metres, Tokens, Width


@component
class PillarEncoder(nn.Module):
    """Encodes one sweep, rows (x m, y m, z m, intensity), to a grid of tokens.

    The square of +-`range_m` around the ego is divided into `cells` x `cells` pillars. Each point is decorated with its
    offset from the pillar's centre (the paper's x_p, y_p; the offset from the points' mean would need a second pass
    over the points), embedded, and max-pooled over its pillar. Convolutions halve the grid while it stays at least as
    fine as the tokens'; then it is average-pooled to them.

    Args:
        hidden: Width of the language model's embeddings.
        tokens: Number of tokens, a square number.
        range_m: Half the side of the square, in metres; points outside are dropped.
        cells: Pillars along a side.
        features: Width of a pillar's features.
    """

    channels = 4

    def __init__(
        self, hidden: Width, tokens: Tokens, range_m: Metres = 51.2, cells: Width = 64, features: Width = 32
    ) -> None:
        super().__init__()
        side = math.isqrt(tokens)
        if side * side != tokens:
            raise ValueError(
                f"model.encoders.lidar.tokens: {tokens} is no square number; {side * side} or {(side + 1) ** 2} is"
            )
        self.range_m, self.cells, self.features = range_m, cells, features
        self.point = nn.Sequential(nn.Linear(6, features), nn.LayerNorm(features), nn.GELU())
        layers: list[nn.Module] = []
        grid, width = cells, features
        while grid // 2 >= side and grid % 2 == 0 and width < 256:
            layers += [nn.Conv2d(width, 2 * width, 3, stride=2, padding=1), nn.GroupNorm(8, 2 * width), nn.GELU()]
            grid, width = grid // 2, 2 * width
        self.network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(side))
        self.place = nn.Parameter(torch.randn(tokens, width) * 0.02)
        self.projector = Projector(width, hidden)

    def forward(self, values: Tensor, mask: Tensor) -> tuple[Tensor, None]:
        """Encode `values` `(m, points, 4)` with `mask` `(m, points)` to `(m, tokens, hidden)`, all to be kept."""
        samples, _, _ = values.shape
        size = 2 * self.range_m / self.cells
        cell = ((values[..., :2] + self.range_m) / size).floor()
        inside = mask & (cell >= 0).all(-1) & (cell < self.cells).all(-1)
        centre = (cell + 0.5) * size - self.range_m
        scaled = values / values.new_tensor([self.range_m, self.range_m, 3.0, 1.0])
        decorated = torch.cat([scaled, (values[..., :2] - centre) / size], dim=-1)
        points = self.point(decorated.to(self.place.dtype))
        points = points * inside[..., None]
        index = (cell[..., 0] * self.cells + cell[..., 1]).long().clamp(0, self.cells**2 - 1)
        pillars = points.new_zeros(samples, self.cells**2, self.features)
        pillars = pillars.scatter_reduce(1, index[..., None].expand_as(points), points, reduce="amax")
        grid = pillars.transpose(1, 2).reshape(samples, self.features, self.cells, self.cells)
        tokens = self.network(grid).flatten(2).transpose(1, 2) + self.place
        return self.projector(tokens), None
