"""Low-rank adapters of linear layers (LoRA: Hu et al. 2021, arXiv 2106.09685), which train in place of the layers.

`peft` is not used: its wrappers rename the weights below them, and with them checkpoints, exports and what an engine
receives. Here a layer keeps its module path and its weight's name; the adapter's matrices are `<layer>.adapter.down`
and `<layer>.adapter.up`.
"""

from __future__ import annotations

import difflib
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Annotated

import torch
from annotated_types import MinLen
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn import functional as F

from framework.model.quantized_base import BaseFormat, QuantizedLinear, dense, quantize_layer, restore_layer
from framework.recipe.component import component
from framework.recipe.ranges import PositiveWeight, Weight, Width


@component
@dataclass(frozen=True)
class LoRA:
    """Low-rank adapters of a model's linear layers:

        y = W x + alpha / rank * up(down(x))

    with `down` `(rank, in)` random and `up` `(out, rank)` 0 at first, so that a new model equals the one without
    adapters.

    Adapters train in every stage whose `trainable` does not exclude them (`!*.adapter.*`); the weights of adapted
    layers never train, whatever `trainable` matches (see `framework.model.freeze`). There is no dropout: it would make
    a token's log-probability in reinforcement learning differ from call to call. Tensor parallelism does not support
    adapters.
    """

    layers: Annotated[Sequence[str], MinLen(1)]
    """Shell patterns of the names of the linear layers to adapt."""
    rank: Width = 16
    """Rank of the update, at least 1."""
    alpha: PositiveWeight = 32.0
    """Scale of the update, above 0; it is divided by `rank`."""
    base: BaseFormat | None = None
    """Format of the adapted layers' own weights in memory and checkpoints, see `framework.model.quantized_base`. None:
    that of all weights."""
    lr_factor: Weight = 1.0
    """Adapters learn at this factor of the stage's rate, unless the stage's `lr_factors` match them."""

    def __post_init__(self) -> None:
        if self.rank < 1 or self.alpha <= 0:
            raise ValueError(
                f"model.adapters: rank {self.rank}, alpha {self.alpha:g}; give a rank from 1 on, alpha above 0"
            )

    def attach(self, model: nn.Module) -> None:
        """Add adapters to the matching layers of `model`, in each layer's dtype.

        They are drawn from torch's generator in the order of the layers; on the meta device they have no data. Raises
        `ValueError` for a pattern that matches no linear layer, and for a layer that shares its weight with another:
        merged into it, the adapter would change both.
        """
        linear = {name: module for name, module in model.named_modules() if type(module) is nn.Linear}
        for pattern in self.layers:
            if not any(fnmatchcase(name, pattern) for name in linear):
                near = ", ".join(difflib.get_close_matches(pattern.strip("*"), linear, n=3, cutoff=0.0))
                raise ValueError(f"model.adapters.layers: {pattern!r} matches no linear layer; the nearest are {near}")
        uses = Counter(id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False))
        for name, layer in linear.items():
            if not any(fnmatchcase(name, pattern) for pattern in self.layers):
                continue
            if uses[id(layer.weight)] > 1:
                raise ValueError(f"model.adapters.layers: {name} shares its weight with another layer; leave it out")
            # Only the class changes, as FSDP changes it: the layer and its module path stay.
            layer.__class__ = LoRALinear if self.base is None else QuantizedLoRALinear
            layer.adapter = Adapter(layer, self.rank, self.alpha / self.rank, self.lr_factor)
            if self.base is not None:
                try:
                    quantize_layer(layer, self.base)
                except ValueError as error:
                    raise ValueError(f"model.adapters.base: {self.base} of {name}: {error}") from error


class Adapter(nn.Module):
    """The low-rank update of one linear layer.

    Args:
        layer: The layer to adapt, which gives the sizes and the dtype.
        rank: Rank of the update.
        scale: Factor of the update.
        lr_factor: Factor of the learning rate.
    """

    def __init__(self, layer: nn.Linear, rank: int, scale: float, lr_factor: float) -> None:
        super().__init__()
        dtype = layer.weight.dtype
        self.scale = scale
        self.lr_factor = lr_factor
        self.enabled = True
        self.down = nn.Parameter(torch.empty(rank, layer.in_features, dtype=dtype))
        self.up = nn.Parameter(torch.zeros(layer.out_features, rank, dtype=dtype))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))

    def forward(self, inputs: Tensor) -> Tensor:
        """Map `(..., in)` to `(..., out)`."""
        return F.linear(F.linear(inputs, self.down) * self.scale, self.up)


class LoRALinear(nn.Linear):
    """A linear layer with an adapter."""

    adapter: Adapter

    def forward(self, input: Tensor) -> Tensor:
        """Map `(..., in)` to `(..., out)`."""
        output = super().forward(input)
        return output + self.adapter(input) if self.adapter.enabled else output


class QuantizedLoRALinear(QuantizedLinear, LoRALinear):
    """A linear layer with an adapter and a quantised weight."""

    def forward(self, input: Tensor) -> Tensor:
        """Map `(..., in)` to `(..., out)`."""
        output = QuantizedLinear.forward(self, input)
        return output + self.adapter(input) if self.adapter.enabled else output


def adapted_layers(model: nn.Module) -> dict[str, LoRALinear]:
    """The layers of `model` that have adapters, by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LoRALinear)}


def adapter_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The adapters' parameters by their names in `model`."""
    return {
        f"{name}.adapter.{key}": parameter
        for name, layer in adapted_layers(model).items()
        for key, parameter in layer.adapter.named_parameters()
    }


def adapters_have_effect(model: nn.Module) -> bool:
    """Whether this rank's shards of the adapters change what `model` computes: some `up` is not 0."""
    ups = (_local(layer.adapter.up) for layer in adapted_layers(model).values())
    return any(bool(up.any()) for up in ups)


@contextmanager
def without_adapters(model: nn.Module) -> Iterator[None]:
    """Disable the adapters of `model` inside the context."""
    layers = adapted_layers(model).values()
    for layer in layers:
        layer.adapter.enabled = False
    try:
        yield
    finally:
        for layer in layers:
            layer.adapter.enabled = True


def merged_tensors(network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The state of an equivalent network without adapters: names and unsharded tensors, one by one.

    Collective where tensors are sharded.
    """
    tensors = network.state_dict()
    layers = {f"{name}.": layer for name, layer in adapted_layers(network).items()}
    merged = {f"{prefix}{key}" for prefix in layers for key in ("weight", "codes")}
    parts = {f"{prefix}{key}" for prefix in layers for key in ("scales", "adapter.down", "adapter.up")}
    for name, tensor in tensors.items():
        if name in merged:
            prefix = f"{name.rpartition('.')[0]}."
            layer = layers[prefix]
            down, up = (_unsharded(tensors[f"{prefix}adapter.{key}"]) for key in ("down", "up"))
            if isinstance(layer, QuantizedLoRALinear):
                weight = _merge(dense(layer), down, up, layer.adapter.scale).to(down.dtype)
            else:
                weight = _merge(_unsharded(tensor), down, up, layer.adapter.scale)
            yield f"{prefix}weight", weight
        elif name not in parts:
            yield name, _unsharded(tensor)


@torch.no_grad()
def merge_adapters(model: nn.Module) -> None:
    """Merge the adapters of `model`, which must be unsharded, into its weights and remove them, in place. Quantised
    weights become plain ones, as exact as they were.
    """
    for layer in adapted_layers(model).values():
        adapter = layer.adapter
        if isinstance(layer, QuantizedLoRALinear):
            merged = _merge(dense(layer), adapter.down, adapter.up, adapter.scale)
            restore_layer(layer, merged.to(adapter.down.dtype))
        else:
            layer.weight.copy_(_merge(layer.weight, adapter.down, adapter.up, adapter.scale))
        del layer.adapter
        layer.__class__ = nn.Linear  # type: ignore[assignment]  # its class before `attach`


def _merge(weight: Tensor, down: Tensor, up: Tensor, scale: float) -> Tensor:
    """weight + scale up @ down, computed in float32 and rounded once."""
    return (weight.float() + scale * (up.float() @ down.float())).to(weight.dtype)


def _unsharded(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _local(parameter: Tensor) -> Tensor:
    values = parameter.detach()
    return values.to_local() if isinstance(values, DTensor) else values
