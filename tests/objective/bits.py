"""Sets of tokens as bits, made from bool by numpy."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def packed(tokens: Tensor) -> Tensor:
    """`(n, vocabulary)` bool as `(n, words)` int32 (see `framework.objective.bitmask`)."""
    whole = np.pad(tokens.numpy(), ((0, 0), (0, -tokens.shape[1] % 32)))
    return torch.from_numpy(np.packbits(whole, axis=1, bitorder="little").view(np.int32))
