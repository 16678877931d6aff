"""Sets of tokens as bitmasks: bit `i` of int32 word `w` stands for token 32 w + i, the layout of grammar engines.

A bitmask takes an eighth of a byte per token. As bool, the masks of a step's answers would take more memory than the
model.
"""

from __future__ import annotations

import torch
from torch import Tensor


def unpack_bitmask(mask: Tensor, start: int, stop: int) -> Tensor:
    """The columns `start` to `stop` of bitmasks `(n, words)` int32 as bool, `(n, stop - start)`."""
    first = start // 32
    octets = mask[:, first : -(-stop // 32)].contiguous().view(torch.uint8)  # lowest byte first: little-endian machines
    places = 2 ** torch.arange(8, dtype=torch.uint8, device=mask.device)
    tokens = (octets[..., None] & places).ne(0).flatten(1)
    return tokens[:, start - 32 * first : stop - 32 * first]


def bitmask_contains(mask: Tensor, tokens: Tensor) -> Tensor:
    """Whether each bitmask of `mask` `(n, words)` int32 contains its own token of `tokens` `(n,)`: `(n,)` bool."""
    words = mask.gather(1, (tokens // 32)[:, None])[:, 0]
    return (words >> (tokens % 32) & 1).bool()
