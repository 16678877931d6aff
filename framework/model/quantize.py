"""Weight-only quantisation of the language model: what a vehicle's engine stores, in the arithmetic of this machine.

Weights are rounded to the nearest value of their format and multiplied as they then are, which is what engines do that
keep activations in half precision. Calibration (AWQ, SmoothQuant) makes the error smaller, never larger than it has to
be: these are figures of plain rounding.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor

Format = Literal["int8", "fp8", "int4"]
"""A format of weights: int8 with a scale for each row, fp8 (e4m3) with one for the tensor, int4 with one for each group
of a row."""
FP8_MOST = 448.0
"""The largest number of e4m3."""


def rounded(weight: Tensor, format: Format, group: int) -> Tensor:
    """`weight` `(..., n)` rounded to what `format` stores, in its own type.

    Args:
        weight: Weights; a row is the last dimension.
        format: The format. Integers are symmetric about 0.
        group: Numbers of a row that share a scale of int4; rows that are no multiple of it end in a smaller group.
    """
    values = weight.float()
    if format == "fp8":
        scale = _scale(values.abs().amax(), FP8_MOST)
        return ((values / scale).to(torch.float8_e4m3fn).float() * scale).to(weight.dtype)
    if format == "int8":
        return _to_integers(values, 127).to(weight.dtype)
    return torch.cat([_to_integers(part, 7) for part in values.split(group, dim=-1)], dim=-1).to(weight.dtype)


def _to_integers(values: Tensor, most: int) -> Tensor:
    scale = _scale(values.abs().amax(dim=-1, keepdim=True), most)
    return (values / scale).round() * scale


def _scale(largest: Tensor, most: float) -> Tensor:
    return (largest / most).clamp(min=torch.finfo(torch.float32).tiny)


@contextmanager
def quantized(model: Any, format: Format, group: int) -> Iterator[float]:
    """The language model's layers with rounded weights, while the block lasts; embeddings, norms, the output head, the
    vision tower and encoders keep theirs.

    Yields the share of the model's weights that is rounded.
    """
    layers = model.backbone.model.language_model.layers
    weights = [parameter for parameter in layers.parameters() if parameter.ndim > 1]
    before = [parameter.detach().clone() for parameter in weights]
    try:
        for parameter in weights:
            parameter.data.copy_(rounded(parameter.data, format, group))
        yield sum(each.numel() for each in weights) / sum(each.numel() for each in model.parameters())
    finally:
        for parameter, value in zip(weights, before, strict=True):
            parameter.data.copy_(value)
