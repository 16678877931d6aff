"""Encoder of a LiDAR sweep on a polar grid: fine near the vehicle, coarse far away, like the density of the points."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from framework.model.encoders.base import Projector
from framework.recipe.component import component
from framework.recipe.ranges import Metres, Tokens, Width


@component
class PolarPillars(nn.Module):
    """Encodes one sweep, rows (x m, y m, z m, intensity), to one token per cell of `rings` x (`tokens` / `rings`).

    Points are embedded one by one and max-pooled over each cell (Zhang et al., "PolarNet: An Improved Grid
    Representation for Online LiDAR Point Clouds Semantic Segmentation", CVPR 2020). Here the ring's index grows with
    the square root of the distance, so that outer rings are wider.

    Args:
        hidden: Width of the language model's embeddings.
        tokens: Number of cells, and of tokens; a multiple of `rings`.
        rings: Number of rings.
        reach: Outer radius of the last ring, in metres; points beyond it count to that ring.
        features: Width of a point's features.

    Raises `ValueError` when `tokens` is no multiple of `rings`.
    """

    channels = 4

    def __init__(
        self, hidden: Width, tokens: Tokens, rings: Width = 8, reach: Metres = 60.0, features: Width = 64
    ) -> None:
        super().__init__()
        if tokens % rings:
            raise ValueError(f"tokens ({tokens}) must be a multiple of rings ({rings})")
        self.tokens, self.rings, self.sectors, self.reach = tokens, rings, tokens // rings, reach
        self.points = nn.Sequential(nn.Linear(6, features), nn.GELU(), nn.Linear(features, features))
        self.cells = nn.Embedding(tokens, features)
        self.projector = Projector(features, hidden)

    def forward(self, values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Encode `values` `(m, rows, 4)` with `mask` `(m, rows)` to `(m, tokens, hidden)`, all to be kept.

        A cell without points gives its own embedding, so that every sample has the same number of tokens.
        """
        m, rows, _ = values.shape
        cell = torch.where(mask, self.cell_of(values), self.tokens)
        embedded = self.points(self._describe(values))
        pooled = embedded.new_full((m, self.tokens + 1, embedded.shape[-1]), -torch.inf)
        index = cell[..., None].expand(m, rows, embedded.shape[-1])
        pooled = pooled.scatter_reduce(1, index, embedded, reduce="amax")[:, : self.tokens]
        pooled = torch.where(pooled.isinf(), 0.0, pooled)
        return self.projector(pooled + self.cells.weight), mask.new_ones((m, self.tokens))

    def cell_of(self, values: Tensor) -> Tensor:
        """The cell `(m, rows)` int64 of each point: ring by ring outwards, counterclockwise from straight behind."""
        x, y = values[..., 0], values[..., 1]
        ring = (torch.hypot(x, y) / self.reach).sqrt().mul(self.rings).long().clamp(max=self.rings - 1)
        turn = (torch.atan2(y, x) + math.pi) / (2 * math.pi)
        sector = turn.mul(self.sectors).long().clamp(max=self.sectors - 1)
        return ring * self.sectors + sector

    def _describe(self, values: Tensor) -> Tensor:
        """Features of each point at about unit scale: x, y, z, intensity, distance, height over distance."""
        x, y, z, intensity = values.unbind(dim=-1)
        distance = torch.hypot(x, y)
        features = [x / self.reach, y / self.reach, z / 3.0, intensity, distance / self.reach, z / (distance + 1.0)]
        return torch.stack(features, dim=-1)
