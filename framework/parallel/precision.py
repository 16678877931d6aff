"""Number formats of weights and arithmetic."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from torch.distributed.fsdp import MixedPrecisionPolicy

from framework.parallel.float8 import Float8
from framework.recipe.component import component

Format = Literal["float32", "bfloat16"]


@component
@dataclass(frozen=True)
class Precision:
    """Number formats of a run.

    float32 weights with bfloat16 arithmetic are mixed precision with master weights (Micikevicius et al. 2018, arXiv
    1710.03740). bfloat16 weights halve weights, gradients and optimizer state; they lose updates smaller than a 256th
    of a weight unless the optimizer compensates for rounding (`stage/optimizer: adamw_kahan`). On a mesh gradients
    are always reduced in float32.
    """

    weights: Format = "float32"
    """Format in which weights are kept and updated."""
    arithmetic: Format = "float32"
    """Format in which matrix products are computed."""
    float8: Float8 | None = None
    """Layers whose products are in float8. None: none."""

    def __post_init__(self) -> None:
        if self.weights == "bfloat16" and self.arithmetic == "float32":
            raise ValueError(
                "parallel.precision: bfloat16 weights gain nothing from float32 arithmetic; set arithmetic to bfloat16"
            )
        if self.float8 is not None and self.arithmetic == "float32":
            raise ValueError(
                "parallel.precision: float8 products give bfloat16; set arithmetic to bfloat16, or float8 to null"
            )

    @property
    def name(self) -> str:
        """The precision as Lightning spells it."""
        if self.arithmetic == "float32":
            return "32-true"
        return "bf16-mixed" if self.mixed else "bf16-true"

    @property
    def mixed(self) -> bool:
        """Whether weights are cast for computing."""
        return self.weights != self.arithmetic

    def cast(self, model: nn.Module) -> None:
        """Cast the weights, in place. Buffers stay: rotary frequencies in bfloat16 would misplace distant tokens."""
        for parameter in model.parameters():
            parameter.data = parameter.data.to(getattr(torch, self.weights))

    def convert(self, model: nn.Module) -> None:
        """Let the layers that compute in float8 do so, in place. Raises `ValueError` where the device cannot."""
        if self.float8 is not None:
            self.float8.convert(model)

    def on_mesh(self) -> MixedPrecisionPolicy:
        """The policy for FSDP2. Inputs are not cast: measurements in metres must not be rounded before an encoder."""
        if self.arithmetic == "float32":
            return MixedPrecisionPolicy(cast_forward_inputs=False)
        return MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
