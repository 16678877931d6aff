"""The vision tower's first layer as a matrix product: its convolution's kernels do not overlap, so that each patch is
multiplied once, as it arrives: flat. Convolutions of so few pixels are many times slower on a CPU and on some GPUs.
"""

from __future__ import annotations

import functools
from typing import Any

from torch import Tensor
from torch.nn import functional as F


def multiply_patches(visual: Any) -> None:
    """Let `visual` embed patches by a product, in place; its parameters stay."""
    embedding = visual.patch_embed
    if embedding.proj.kernel_size == embedding.proj.stride:
        embedding.forward = functools.partial(_embed, embedding)


def _embed(embedding: Any, patches: Tensor) -> Tensor:
    """Embeddings `(n, width)` of flat patches `(n, channels * frames * height * width)`."""
    weight = embedding.proj.weight
    return F.linear(patches.flatten(1).to(weight.dtype), weight.flatten(1), embedding.proj.bias)
