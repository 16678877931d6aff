"""Matrix products in float8 (Micikevicius et al. 2022, arXiv 2209.05433) by torchao."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Literal

import torch
from torch import nn

from framework.recipe.component import component

CAPABILITY = (8, 9)
"""The first CUDA capability with products of float8: Ada; Hopper has 9.0."""
MULTIPLE = 16
"""Of which both sides of a weight must be a multiple for the kernels."""


@component
@dataclass(frozen=True)
class Float8:
    """Computes the products of linear layers, forward and backward, in float8 with scales that each call measures.

    Inputs and weights are rounded to e4m3 (3 bits of mantissa), gradients of outputs to e5m2 where scales are of
    tensors and to e4m3 where they are of rows. Weights, gradients of weights and the optimizer stay as the precision
    has them; so do checkpoints and exports. A layer with an adapter stays in bfloat16.
    """

    layers: Sequence[str]
    """Shell patterns of the names of the linear layers."""
    scaling: Literal["tensorwise", "rowwise"] = "tensorwise"
    """What shares a scale: a whole tensor, which is fastest, or a row, which an outlier harms less."""
    small: bool = False
    """Whether to convert layers that torchao's measurements on H100 call too small to gain."""
    emulate: bool = False
    """Whether to round as float8 does and multiply in float32, on devices without such products: for tests."""

    def convert(self, model: nn.Module) -> list[str]:
        """Let the matching layers of `model` compute in float8, in place, and return their names. Names of parameters
        stay.

        Raises `ValueError` where torchao is missing, the device has no such products, or no layer matches.
        """
        try:
            from torchao.float8 import Float8LinearConfig, convert_to_float8_training
        except ImportError as error:
            raise ValueError(
                "parallel.precision.float8: needs torchao, which is not installed: pip install '.[float8]', or choose "
                "parallel/precision=bf16_mixed"
            ) from error
        if not self.emulate and (reason := _no_products()):
            raise ValueError(f"parallel.precision.float8: {reason}; choose parallel/precision=bf16_mixed")
        chosen = {name for name, module in model.named_modules() if self._takes(name, module)}
        if not chosen:
            raise ValueError(
                f"parallel.precision.float8.layers: {list(self.layers)} match no linear layer that gains from float8; "
                "give other patterns, or small=true"
            )
        config = replace(Float8LinearConfig.from_recipe_name(self.scaling), emulate=self.emulate)
        convert_to_float8_training(model, module_filter_fn=lambda _, name: name in chosen, config=config)
        return sorted(chosen)

    def _takes(self, name: str, module: nn.Module) -> bool:
        if type(module) is not nn.Linear or not any(fnmatchcase(name, pattern) for pattern in self.layers):
            return False
        outputs, inputs = module.weight.shape
        if outputs % MULTIPLE or inputs % MULTIPLE:
            return False
        return self.small or _gains(self.scaling, outputs, inputs)


def _gains(scaling: str, outputs: int, inputs: int) -> bool:
    """Whether float8 is faster for a weight `(outputs, inputs)` on an H100, by torchao's table (`float8/README.md`)."""
    if scaling == "tensorwise":
        return not (inputs <= 4096 and outputs <= 1024)
    return not (outputs <= 2048 or inputs <= 1024 or (outputs <= 4096 and inputs <= 2048))


def _no_products() -> str | None:
    """Why this machine cannot multiply in float8; None where it can."""
    if not torch.cuda.is_available():
        return "a CPU has no products of float8"
    capability = torch.cuda.get_device_capability()
    name = torch.cuda.get_device_name()
    return f"{name} has no products of float8, which come with Ada and Hopper" if capability < CAPABILITY else None
