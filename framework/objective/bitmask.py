"""Sets of tokens in an eighth of a byte each: bit `i` of int32 word `w` stands for token 32 w + i, as grammar engines
have it. Spelled out as bool, those of a step's answers would take more memory than the model.
"""

from __future__ import annotations

import torch
from torch import Tensor


def unpack_bitmask(bits: Tensor, start: int, stop: int) -> Tensor:
    """Which of the tokens `start` to `stop` are in each of the sets `bits` `(n, words)` int32: `(n, stop - start)`
    bool.
    """
    first = start // 32
    octets = bits[:, first : -(-stop // 32)].contiguous().view(torch.uint8)  # the lowest first: little-endian machines
    places = 2 ** torch.arange(8, dtype=torch.uint8, device=bits.device)
    found = (octets[..., None] & places).ne(0).flatten(1)
    return found[:, start - 32 * first : stop - 32 * first]


def bitmask_contains(bits: Tensor, tokens: Tensor) -> Tensor:
    """Whether each of the sets `bits` `(n, words)` int32 has its one of `tokens` `(n,)`: `(n,)` bool."""
    words = bits.gather(1, (tokens // 32)[:, None])[:, 0]
    return (words >> (tokens % 32) & 1).bool()
