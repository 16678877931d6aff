"""Frozen weights below low-rank adapters in 8 or 4 bits (QLoRA: Dettmers et al. 2023, arXiv 2305.14314).

torchao and bitsandbytes keep such weights as tensors of their own kind, which neither checkpoints nor exports here can
hold: they would have to be pickled. Here a layer has two plain buffers in place of its `weight`: `codes` and `scales`.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

BaseFormat = Literal["int8", "nf4"]
"""`int8`: a scale for each row, 8 bits and a little a weight. `nf4`: the 16 quantiles of a normal distribution, and a
scale for each `GROUP` weights of a row, 4.5 bits a weight."""
GROUP = 64
"""Weights of a row that share a scale in `nf4`."""
OFFSET = 0.9677083
"""The outermost quantile of `nf4`, see `levels`."""


class QuantizedLinear(nn.Linear):
    """A linear layer whose weight is `codes` and `scales`. A layer becomes one by `quantize_layer`."""

    codes: Tensor
    """`(out, in)` int8, or `(out, in / 2)` uint8 with two codes in each."""
    scales: Tensor
    """`(out, 1)` or `(out, in / GROUP)` float32."""
    base: BaseFormat
    """The format."""
    frozen_buffers = ("codes", "scales")
    """Buffers that nothing changes: a save may copy them while training goes on."""

    def forward(self, input: Tensor) -> Tensor:
        """Map `(..., in)` to `(..., out)`, in the type of autocast or of `input`."""
        device = input.device.type
        wanted = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else input.dtype
        outputs: Tensor = _Product.apply(input.to(wanted), self.codes, self.scales, self.base)
        return outputs if self.bias is None else outputs + self.bias.to(wanted)


class _Product(torch.autograd.Function):
    """`x W^T` of a frozen weight, which is made of its codes in both passes and kept in neither."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, codes: Tensor, scales: Tensor, base: BaseFormat) -> Tensor:
        ctx.save_for_backward(codes, scales)
        ctx.base = base
        return F.linear(inputs, dequantized(codes, scales, base, inputs.dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        codes, scales = ctx.saved_tensors
        (gradient,) = gradients
        return gradient @ dequantized(codes, scales, ctx.base, gradient.dtype), None, None, None


def quantize_layer(layer: nn.Linear, base: BaseFormat) -> None:
    """Give `layer`, which is a `QuantizedLinear` by class, buffers in place of its weight; on the meta device without
    data. Raises `ValueError` where a row is no whole number of groups.
    """
    if base == "nf4" and layer.in_features % GROUP:
        raise ValueError(f"rows of {layer.in_features} weights are no multiple of {GROUP}; choose int8")
    weight = layer.weight
    del layer.weight
    layer.base = base  # type: ignore[assignment]
    with torch.no_grad():
        codes, scales = quantized(weight, base)
    layer.register_buffer("codes", codes)
    layer.register_buffer("scales", scales)


def restore_layer(layer: nn.Linear, weight: Tensor) -> None:
    """Give `layer` a plain `weight` `(out, in)` in place of its buffers."""
    del layer.codes, layer.scales
    layer.weight = nn.Parameter(weight, requires_grad=False)


@contextmanager
def restored(model: nn.Module) -> Iterator[None]:
    """Give the quantised layers of `model` plain weights without values, to be read or drawn inside; they are quantised
    when the block ends. All of them are in memory at once, in float32.
    """
    layers = quantized_layers(model)
    for layer in layers:
        size, device = (layer.out_features, layer.in_features), layer.codes.device
        restore_layer(layer, torch.empty(size, device=device))
    yield
    for layer in layers:
        quantize_layer(layer, layer.base)


def quantized_layers(model: nn.Module) -> list[QuantizedLinear]:
    """The layers of `model` with quantised weights."""
    return [module for module in model.modules() if isinstance(module, QuantizedLinear)]


def count_weights(module: nn.Module, trainable_only: bool = False) -> int:
    """Number of weights of `module`: its parameters, and the quantised ones, which are none and never train."""
    quantized = 0 if trainable_only else sum(x.out_features * x.in_features for x in quantized_layers(module))
    return quantized + sum(p.numel() for p in module.parameters() if p.requires_grad or not trainable_only)


def dense(layer: QuantizedLinear) -> Tensor:
    """The weight that `layer` computes with, `(out, in)` float32."""
    return dequantized(layer.codes, layer.scales, layer.base, torch.float32)


# The formats


def quantized(weight: Tensor, base: BaseFormat) -> tuple[Tensor, Tensor]:
    """Codes and scales of `weight` `(out, in)`, each code the nearest to its weight."""
    values = weight.detach().float()
    if base == "int8":
        scales = _scales(values) / 127
        return (values / scales).round().to(torch.int8), scales
    grouped = values.unflatten(1, (-1, GROUP))
    scales = _scales(grouped)
    chosen = levels(values.device)
    codes = torch.bucketize(grouped / scales, (chosen[1:] + chosen[:-1]) / 2).flatten(1).to(torch.uint8)
    return codes[:, ::2] << 4 | codes[:, 1::2], scales[..., 0]


def dequantized(codes: Tensor, scales: Tensor, base: BaseFormat, dtype: torch.dtype) -> Tensor:
    """The weight `(out, in)` in `dtype`, rounded once."""
    if base == "int8":
        return (codes.float() * scales).to(dtype)
    pairs = torch.stack([codes >> 4, codes & 15], dim=-1).flatten(1).int()
    values = levels(codes.device)[pairs].unflatten(1, (-1, GROUP))
    return (values * scales[..., None]).flatten(1).to(dtype)


def _scales(values: Tensor) -> Tensor:
    """The largest magnitudes along the last dimension, which stays with size 1."""
    return values.abs().amax(dim=-1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)


@functools.cache
def _levels() -> Tensor:
    def quantiles(number: int) -> Tensor:
        shares = torch.linspace(OFFSET, 0.5, number + 1, dtype=torch.float64, device="cpu")
        return torch.special.ndtri(shares)

    found = torch.cat([quantiles(8), -quantiles(7)[:-1]]).sort().values  # the last of the first eight is 0
    return (found / found.abs().max()).float()


@functools.cache
def levels(device: torch.device) -> Tensor:
    """The 16 values of `nf4` in [-1, 1], ascending: quantiles of a normal distribution, 8 positive ones, 7 negative
    ones and 0 (appendix E).
    """
    return _levels().to(device)
