"""Radar as a few tokens: learned queries gather the returns."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from framework.model.encoders.base import Projector

UNITS = (40.0, 40.0, 2.0, 10.0, 10.0)
"""What brings x, y, z (m), radial velocity (m/s) and cross-section (dB m^2) to unit scale."""


class RadarEncoder(nn.Module):
    """`tokens` learned queries attend over all returns: pooling by multihead attention (Set Transformer, Lee et al.
    2019, arXiv 1810.00825, eq. 11).
    """

    channels = 5

    def __init__(self, hidden: int, tokens: int, features: int = 64, heads: int = 4) -> None:
        super().__init__()
        self.point = nn.Sequential(nn.Linear(len(UNITS), features), nn.GELU(), nn.Linear(features, features))
        self.queries = nn.Parameter(torch.randn(tokens, features) * 0.5)
        self.nothing = nn.Parameter(torch.zeros(1, 1, features))
        self.attention = nn.MultiheadAttention(features, heads, batch_first=True)
        self.projector = Projector(features, hidden)

    def forward(self, values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """`values` `(m, returns, 5)`, `mask` `(m, returns)` -> `(m, tokens, hidden)`, all of them kept."""
        samples = len(values)
        points = self.point((values / values.new_tensor(UNITS)).to(self.queries.dtype))
        points = torch.cat(
            [points, self.nothing.expand(samples, -1, -1)], dim=1
        )  # something to attend to when nothing returned
        ignored = torch.cat([~mask, torch.zeros_like(mask[:, :1])], dim=1)
        queries = self.queries.expand(samples, -1, -1)
        gathered, _ = self.attention(queries, points, points, key_padding_mask=ignored, need_weights=False)
        tokens = self.projector(queries + gathered)
        return tokens, torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
