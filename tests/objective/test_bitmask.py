"""Sets of tokens as bits, against the same as bool."""

from __future__ import annotations

import pytest
import torch

from framework.objective.bitmask import bitmask_contains, unpack_bitmask
from tests.objective.bits import packed


@pytest.mark.parametrize("vocabulary", [31, 32, 33, 1000])
def test_bits_say_what_bool_says(vocabulary: int) -> None:
    generator = torch.Generator().manual_seed(vocabulary)
    tokens = torch.rand(6, vocabulary, generator=generator) < 0.4
    tokens[0], tokens[1] = True, False
    bits = packed(tokens)
    for start, stop in ((0, vocabulary), (0, vocabulary // 3), (vocabulary // 3, vocabulary), (17, 25)):
        assert torch.equal(unpack_bitmask(bits, start, stop), tokens[:, start:stop])
        assert torch.equal(unpack_bitmask(bits[2:4], start, stop), tokens[2:4, start:stop])
    for token in range(vocabulary):
        assert torch.equal(bitmask_contains(bits, torch.full((6,), token)), tokens[:, token])


def test_no_positions_have_no_sets() -> None:
    assert unpack_bitmask(torch.zeros(0, 3, dtype=torch.int32), 5, 70).shape == (0, 65)
