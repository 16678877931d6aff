"""LiDAR as tokens on a polar grid: fine near the vehicle, coarse far away, as the points themselves lie."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from framework.model.encoders.base import Projector


class PolarPillars(nn.Module):
    """One token for each cell of `rings` x (`tokens` / `rings`) around the vehicle.

    Points are embedded one by one and pooled by their maximum in each cell (Zhang et al., "PolarNet: An Improved Grid
    Representation for Online LiDAR Point Clouds Semantic Segmentation", CVPR 2020); here the rings widen with the
    square root of the distance, up to `reach` (m), beyond which points fall into the last. Raises `ValueError` when
    `tokens` is no multiple of `rings`.
    """

    channels = 4

    def __init__(self, hidden: int, tokens: int, rings: int = 8, reach: float = 60.0, features: int = 64) -> None:
        super().__init__()
        if tokens % rings:
            raise ValueError(f"tokens ({tokens}) must be a multiple of rings ({rings})")
        self.tokens, self.rings, self.sectors, self.reach = tokens, rings, tokens // rings, reach
        self.points = nn.Sequential(nn.Linear(6, features), nn.GELU(), nn.Linear(features, features))
        self.cells = nn.Embedding(tokens, features)
        self.projector = Projector(features, hidden)

    def forward(self, values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Rows (x, y, z, intensity) `(m, rows, 4)`, `mask` `(m, rows)` -> `(m, tokens, hidden)` and `(m, tokens)`, all
        kept.

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
        """The cell `(m, rows)` int64 of each point, ring by ring outwards, in a ring counterclockwise from straight
        behind."""
        x, y = values[..., 0], values[..., 1]
        ring = (torch.hypot(x, y) / self.reach).sqrt().mul(self.rings).long().clamp(max=self.rings - 1)
        turn = (torch.atan2(y, x) + math.pi) / (2 * math.pi)
        sector = turn.mul(self.sectors).long().clamp(max=self.sectors - 1)
        return ring * self.sectors + sector

    def _describe(self, values: Tensor) -> Tensor:
        """Each point in units of about one: x, y, z, intensity, distance, height over distance."""
        x, y, z, intensity = values.unbind(dim=-1)
        distance = torch.hypot(x, y)
        described = [x / self.reach, y / self.reach, z / 3.0, intensity, distance / self.reach, z / (distance + 1.0)]
        return torch.stack(described, dim=-1)
