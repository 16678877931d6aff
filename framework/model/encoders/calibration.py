"""Encoder of the cameras' calibration, one token a camera."""

from __future__ import annotations

import math
from typing import Annotated

import torch
from annotated_types import Interval
from torch import Tensor, nn

from framework.model.encoders.base import Projector
from framework.recipe.component import component
from framework.recipe.ranges import Metres, Width


@component
class CalibrationEncoder(nn.Module):
    """Encodes where each camera is and which way it sees: the rays of a grid of its pixels, which tell intrinsics,
    lens and extrinsics at once (as the rays of Zhang et al. 2024, "Cameras as Rays", arXiv 2402.14817).

    Rows are (x m, y m, z m of the camera, then grid x grid unit directions), in the ego frame. Fourier features
    (Tancik et al. 2020, arXiv 2006.10739) resolve what rigs differ by: degrees and decimetres.

    Args:
        hidden: Width of the language model's embeddings.
        grid: Cells along each side of an image, those of the data.
        bands: Number of wavelengths, from 2 on, each half of the last: a direction's parts lie in -1 to 1.
        span: Scale of positions, in metres.
    """

    def __init__(
        self,
        hidden: Width,
        grid: Annotated[int, Interval(ge=2, le=16)] = 4,
        bands: Annotated[int, Interval(ge=1, le=16)] = 4,
        span: Metres = 2.0,
    ) -> None:
        super().__init__()
        self.channels = 3 + 3 * grid * grid
        self.bands, self.span = bands, span
        self.projector = Projector((1 + 2 * bands) * self.channels, hidden)

    def forward(self, values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Encode `values` `(m, cameras, channels)` with `mask` `(m, cameras)` to `(m, cameras, hidden)`; `mask` is
        returned with it.
        """
        scaled = torch.cat([values[..., :3] / self.span, values[..., 3:]], dim=-1)
        octaves = torch.arange(self.bands, device=values.device)
        angles = scaled[..., None] * (math.pi * 2.0**octaves)
        waves = torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(-2)
        return self.projector(torch.cat([scaled, waves], dim=-1)), mask
