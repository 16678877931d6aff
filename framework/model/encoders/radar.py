"""Encoder of radar returns, pooled to a few tokens by learned queries."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from framework.model.encoders.base import Projector
from framework.recipe.component import component
from framework.recipe.ranges import Tokens, Width

UNITS = (40.0, 40.0, 2.0, 10.0, 10.0)
"""Scales of x, y, z (m), radial velocity (m/s) and cross-section (dB m^2)."""


@component
class RadarEncoder(nn.Module):
    """Pools all returns by multihead attention from learned queries (Set Transformer, Lee et al. 2019, arXiv
    1810.00825, equation 11).

    Rows are (x m, y m, z m, radial velocity m/s, cross-section dB m^2).

    Args:
        hidden: Width of the language model's embeddings.
        tokens: Number of queries, and of tokens.
        features: Width of the encoder.
        heads: Attention heads.
    """

    channels = 5

    def __init__(self, hidden: Width, tokens: Tokens, features: Width = 64, heads: Width = 4) -> None:
        super().__init__()
        self.point = nn.Sequential(nn.Linear(len(UNITS), features), nn.GELU(), nn.Linear(features, features))
        self.queries = nn.Parameter(torch.randn(tokens, features) * 0.5)
        self.nothing = nn.Parameter(torch.zeros(1, 1, features))
        self.attention = nn.MultiheadAttention(features, heads, batch_first=True)
        self.projector = Projector(features, hidden)

    def forward(self, values: Tensor, mask: Tensor) -> tuple[Tensor, None]:
        """Encode `values` `(m, returns, 5)` with `mask` `(m, returns)` to `(m, tokens, hidden)`, all to be kept."""
        samples = values.shape[0]  # unlike a length, it may vary in an exported graph
        points = self.point((values / values.new_tensor(UNITS)).to(self.queries.dtype))
        # One more row to attend to, for samples without returns.
        points = torch.cat([points, self.nothing.expand(samples, -1, -1)], dim=1)
        ignored = torch.cat([~mask, torch.zeros_like(mask[:, :1])], dim=1)
        queries = self.queries.expand(samples, -1, -1)
        pooled, _ = self.attention(queries, points, points, key_padding_mask=ignored, need_weights=False)
        tokens = self.projector(queries + pooled)
        return tokens, None
