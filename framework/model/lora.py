"""Low-rank adapters (LoRA: Hu et al. 2021, arXiv 2106.09685): pairs of small matrices beside linear layers, which train
in their place.

Not `peft`: its wrappers rename the weights below them, and with that checkpoints, exports and what an engine is given.
Here a layer keeps its place and its weight's name; the pair is `<layer>.adapter.down` and `<layer>.adapter.up`.
"""

from __future__ import annotations

import difflib
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn import functional as F


@dataclass(frozen=True)
class LoRA:
    """Beside every linear layer W whose name matches one of `layers` (shell patterns), a pair: the layer gives W x +
    alpha / rank * up(down(x)), with `down` `(rank, in)` drawn and `up` `(out, rank)` 0 at first, so that a model begins
    as the one without adapters.

    LoRA train in every stage whose `trainable` does not refuse them (`!*.adapter.*`), and the layers beside which
    they are do not, whatever it says (see `framework.model.freeze`); at `lr_factor` times the stage's rate, where its
    `lr_factors` do not match them. There is no dropout: in reinforcement learning a
    token's log-probability would be another each time it is asked for. Not cut by tensor parallelism.
    """

    layers: Sequence[str]
    rank: int = 16
    alpha: float = 32.0
    lr_factor: float = 1.0

    def __post_init__(self) -> None:
        if self.rank < 1 or self.alpha <= 0:
            raise ValueError(
                f"model.adapters: rank {self.rank}, alpha {self.alpha:g}; give a rank from 1 on, alpha above 0"
            )

    def attach(self, model: nn.Module) -> None:
        """Put the pairs there, drawn from torch's generator in the order of the layers, in each one's type; on the meta
        device without data. Raises `ValueError` for a pattern that matches no linear layer, and for a layer that shares
        its weight: merged into it, the pair would change the others, too.
        """
        linear = {name: module for name, module in model.named_modules() if type(module) is nn.Linear}
        for pattern in self.layers:
            if not any(fnmatchcase(name, pattern) for name in linear):
                near = ", ".join(difflib.get_close_matches(pattern.strip("*"), linear, n=3, cutoff=0.0))
                raise ValueError(f"model.adapters.layers: {pattern!r} matches no linear layer; the nearest are {near}")
        places = Counter(id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False))
        for name, layer in linear.items():
            if not any(fnmatchcase(name, pattern) for pattern in self.layers):
                continue
            if places[id(layer.weight)] > 1:
                raise ValueError(f"model.adapters.layers: {name} shares its weight with another layer; leave it out")
            # Its class alone changes, as FSDP changes it: what the layer is, and where, stays.
            layer.__class__ = LoRALinear
            layer.adapter = Adapter(layer, self.rank, self.alpha / self.rank, self.lr_factor)


class Adapter(nn.Module):
    """The pair beside `layer`, its product times `scale`, which learns at `lr_factor` times the rate of others."""

    def __init__(self, layer: nn.Linear, rank: int, scale: float, lr_factor: float) -> None:
        super().__init__()
        dtype = layer.weight.dtype
        self.scale = scale
        self.lr_factor = lr_factor
        self.used = True
        self.down = nn.Parameter(torch.empty(rank, layer.in_features, dtype=dtype))
        self.up = nn.Parameter(torch.zeros(layer.out_features, rank, dtype=dtype))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))

    def forward(self, inputs: Tensor) -> Tensor:
        """`(..., in)` to `(..., out)`."""
        return F.linear(F.linear(inputs, self.down) * self.scale, self.up)


class LoRALinear(nn.Linear):
    """A linear layer with an adapter beside it."""

    adapter: Adapter

    def forward(self, input: Tensor) -> Tensor:
        """`(..., in)` to `(..., out)`."""
        plain = super().forward(input)
        return plain + self.adapter(input) if self.adapter.used else plain


def adapted(model: nn.Module) -> dict[str, LoRALinear]:
    """The layers of `model` that have adapters, by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LoRALinear)}


def adapter_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The adapters' parameters by their names in `model`."""
    return {
        f"{name}.adapter.{key}": parameter
        for name, layer in adapted(model).items()
        for key, parameter in layer.adapter.named_parameters()
    }


def adapters_have_effect(model: nn.Module) -> bool:
    """Whether what this rank holds of the adapters makes `model` another than the one without: some `up` is not 0."""
    ups = (_here(layer.adapter.up) for layer in adapted(model).values())
    return any(bool(up.any()) for up in ups)


@contextmanager
def without_adapters(model: nn.Module) -> Iterator[None]:
    """`model` computes as if it had no adapters."""
    layers = adapted(model).values()
    for layer in layers:
        layer.adapter.used = False
    try:
        yield
    finally:
        for layer in layers:
            layer.adapter.used = True


def merged_tensors(network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The tensors of the network that has no adapters and computes what `network` does: its own names, each tensor
    whole, one by one (collective where they are sharded).
    """
    tensors = network.state_dict()
    scales = {f"{name}.weight": layer.adapter.scale for name, layer in adapted(network).items()}
    pairs = {f"{name}.adapter.{key}" for name in adapted(network) for key in ("down", "up")}
    for name, tensor in tensors.items():
        if name in scales:
            beside = name.removesuffix("weight") + "adapter."
            down, up = _whole(tensors[f"{beside}down"]), _whole(tensors[f"{beside}up"])
            yield name, _sum(_whole(tensor), down, up, scales[name])
        elif name not in pairs:
            yield name, _whole(tensor)


@torch.no_grad()
def merge(model: nn.Module) -> None:
    """Make `model`, which is whole, one without adapters that computes the same, in place."""
    for layer in adapted(model).values():
        adapter = layer.adapter
        layer.weight.copy_(_sum(layer.weight, adapter.down, adapter.up, adapter.scale))
        del layer.adapter
        layer.__class__ = nn.Linear  # type: ignore[assignment]  # which it was


def _sum(weight: Tensor, down: Tensor, up: Tensor, scale: float) -> Tensor:
    """In float32, and rounded once."""
    return (weight.float() + scale * (up.float() @ down.float())).to(weight.dtype)


def _whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _here(parameter: Tensor) -> Tensor:
    values = parameter.detach()
    return values.to_local() if isinstance(values, DTensor) else values
