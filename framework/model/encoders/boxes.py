"""Encoder of the perception stack's boxes, one token per box."""

from __future__ import annotations

import math
from typing import Annotated

import torch
from annotated_types import Interval
from torch import Tensor, nn

from framework.model.encoders.base import Projector
from framework.recipe.component import component
from framework.recipe.ranges import Count, Metres, Width
from framework.scene.types import CLASSES

GEOMETRY = 9
"""Number of leading channels in metres, radians and m/s; the class and the score follow."""


@component
class BoxEncoder(nn.Module):
    """Encodes each box by Fourier features of its geometry (Tancik et al. 2020, arXiv 2006.10739), its class and its
    score.

    Rows are (x, y, z, length, width, height, yaw, vx, vy, class index, score). Wavelengths are spaced evenly in the
    logarithm: the short ones resolve decimetres, the long ones cover the whole range.

    Args:
        hidden: Width of the language model's embeddings.
        bands: Number of wavelengths.
        shortest: Shortest wavelength, in metres.
        longest: Longest wavelength, in metres.
        references: Boxes of a sample that get an embedding of their place in the order, so that an answer can point at
            them; 0 for none. Goes with the `references` of `framework.model.codecs.box_tokens`.
        polar: Whether the distance on the ground joins the geometry, and the bearing's sine and cosine the features. A
            model trained from scratch then need not learn a square root to say how far a box is, and on which side.
    """

    channels = 11

    def __init__(
        self,
        hidden: Width,
        bands: Annotated[int, Interval(ge=1, le=64)] = 10,
        shortest: Metres = 0.5,
        longest: Metres = 128.0,
        references: Count = 0,
        polar: bool = False,
    ) -> None:
        super().__init__()
        self.bands, self.shortest, self.longest, self.polar = bands, shortest, longest, polar
        self.classes = nn.Embedding(len(CLASSES), 32)
        lengths = GEOMETRY + 1 if polar else GEOMETRY
        self.projector = Projector((2 * bands + 1) * lengths + (2 if polar else 0) + 1 + 32, hidden)
        self.places = nn.Embedding(references, hidden) if references else None
        if self.places is not None:
            nn.init.normal_(self.places.weight, std=self.projector.scale)

    def forward(self, values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Encode `values` `(m, boxes, 11)` with `mask` `(m, boxes)` to `(m, boxes, hidden)`; `mask` is returned with
        it.

        Raises `ValueError` for more boxes than there are references, if there are any.
        """
        geometry, score = values[..., :GEOMETRY], values[..., GEOMETRY + 1 :]
        bearing = geometry[..., :0]
        if self.polar:
            x, y = geometry[..., 0], geometry[..., 1]
            distance, angle = (x * x + y * y).sqrt(), torch.atan2(y, x)  # ONNX has no hypot
            geometry = torch.cat([geometry, distance[..., None]], dim=-1)
            bearing = torch.stack([angle.sin(), angle.cos()], dim=-1)
        exponents = torch.linspace(math.log(self.longest), math.log(self.shortest), self.bands, device=values.device)
        angles = geometry[..., None] * (2 * math.pi / exponents.exp())
        waves = torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(-2)
        kinds = self.classes(values[..., GEOMETRY].long())
        features = self.projector(torch.cat([waves, geometry / 20.0, bearing, score, kinds], dim=-1))
        if self.places is None:
            return features, mask
        if values.shape[1] > self.places.num_embeddings:
            raise ValueError(
                f"sensor boxes: {values.shape[1]} boxes, model.encoders.boxes.references is "
                f"{self.places.num_embeddings}: set it to data.sensors.boxes.max_boxes"
            )
        return features + self.places.weight[: values.shape[1]], mask
