"""In which format weights are kept, and in which they are computed with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from torch.distributed.fsdp import MixedPrecisionPolicy

Format = Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class Precision:
    """The formats of a run: `weights` are kept and updated in one, matrix products are computed in `arithmetic`.

    float32 weights with bfloat16 arithmetic are mixed precision with master weights (Micikevicius et al. 2018, arXiv
    1710.03740). bfloat16 weights halve weights, gradients and optimizer state; they lose updates smaller than a 256th
    of a weight unless the optimizer keeps what rounding drops (`training/optimizer: adamw_kahan`). Over a mesh
    gradients are reduced in float32 in every case.
    """

    weights: Format = "float32"
    arithmetic: Format = "float32"

    def __post_init__(self) -> None:
        if self.weights == "bfloat16" and self.arithmetic == "float32":
            raise ValueError(
                "parallel.precision: bfloat16 weights gain nothing from float32 arithmetic; set arithmetic to bfloat16"
            )

    @property
    def name(self) -> str:
        """As Lightning spells it."""
        if self.arithmetic == "float32":
            return "32-true"
        return "bf16-mixed" if self.mixed else "bf16-true"

    @property
    def mixed(self) -> bool:
        """Whether weights are cast before they are computed with."""
        return self.weights != self.arithmetic

    def cast(self, model: nn.Module) -> None:
        """Bring the weights into their format, in place. Buffers stay: rotary frequencies in bfloat16 would put distant
        tokens in wrong places.
        """
        for parameter in model.parameters():
            parameter.data = parameter.data.to(getattr(torch, self.weights))

    def on_mesh(self) -> MixedPrecisionPolicy:
        """What FSDP2 is told. Inputs are not cast: what is measured in metres must not be rounded on its way to an
        encoder.
        """
        if self.arithmetic == "float32":
            return MixedPrecisionPolicy(cast_forward_inputs=False)
        return MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
