"""Attention by segments equals attention under a dense mask that keeps the segments apart."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from framework.model.segment_operator import attention_by_segment
from framework.model.segments import Segments, attend, by_segment, of_bounds, way_of


def masked(query: Tensor, key: Tensor, value: Tensor, seen: Tensor, scaling: float) -> Tensor:
    """Attention in float64 by its definition, `(1, t, heads, width)`; `seen` `(queries, keys)` bool."""
    groups = query.shape[1] // key.shape[1]
    key, value = (each.double().repeat_interleave(groups, dim=1) for each in (key, value))
    scores = (query.double() @ key.transpose(2, 3) * scaling).masked_fill(~seen, -torch.inf)
    return (scores.softmax(dim=-1) @ value).transpose(1, 2)


def seen_by(lengths: Sequence[int], key_lengths: Sequence[int], causal: bool) -> Tensor:
    """Which keys each query sees: those of its segment; of the last query, all."""
    blocks = [
        torch.ones(own, seen, dtype=torch.bool).tril(seen - own) if causal else torch.ones(own, seen, dtype=torch.bool)
        for own, seen in zip(lengths, key_lengths, strict=True)
    ]
    return torch.block_diag(*blocks).bool()


CASES = [
    ([5], [5]),
    ([1, 1, 1], [1, 1, 1]),
    ([3, 3, 3], [3, 3, 3]),
    ([4, 7, 7, 1], [4, 7, 7, 1]),
    ([2, 3, 3, 1], [2, 5, 5, 9]),
]
"""Lengths of queries and of keys."""


def bounds_of(lengths: Sequence[int]) -> Tensor:
    """Where segments begin, and the last one ends."""
    return F.pad(torch.tensor(lengths).cumsum(0, dtype=torch.int32), (1, 0))


@pytest.mark.parametrize(("case", "causal", "key_heads"), itertools.product(CASES, [True, False], [1, 2, 4]))
@pytest.mark.parametrize("operator", [True, False])
def test_segments_are_a_mask_of_blocks(
    operator: bool, case: tuple[list[int], list[int]], causal: bool, key_heads: int
) -> None:
    lengths, key_lengths = case
    generator = torch.Generator().manual_seed(sum(lengths))
    query = torch.randn(1, 4, sum(lengths), 8, generator=generator, requires_grad=True)
    key, value = (
        torch.randn(1, key_heads, sum(key_lengths), 8, generator=generator, requires_grad=True) for _ in range(2)
    )
    if operator:
        bounds = bounds_of(lengths), bounds_of(key_lengths)
        ours, _ = attention_by_segment(query, key, value, *bounds, causal, 0.3)
    else:
        ours = by_segment(query, key, value, lengths, key_lengths, causal, 0.3)
    expected = masked(query, key, value, seen_by(lengths, key_lengths, causal), 0.3)
    torch.testing.assert_close(ours.double(), expected, atol=1e-6, rtol=1e-5)
    weights = torch.randn(ours.shape, generator=generator)
    found = torch.autograd.grad((ours * weights).sum(), (query, key, value))
    wanted = torch.autograd.grad((expected * weights).sum(), (query, key, value))
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_answers_gather_the_keys_of_their_prompt() -> None:
    query, key, value = torch.randn(3, 1, 2, 7, 8, generator=torch.Generator().manual_seed(0))
    lengths, key_lengths = (3, 2, 2), (3, 5, 5)
    keys = torch.tensor([0, 1, 2, 0, 1, 2, 3, 4, 0, 1, 2, 5, 6])
    bounds = torch.tensor([0, 3, 5, 7], dtype=torch.int32)
    layer = nn.Module()
    layer.is_causal = True
    segments = Segments(lengths, bounds, key_lengths, torch.tensor([0, 3, 8, 13], dtype=torch.int32), keys, 3, 5)
    ours, weights = attend(layer, query, key, value, None, scaling=0.5, segments=segments)
    seen = torch.ones(7, 7, dtype=torch.bool).tril()
    seen[5:, 3:5] = False  # the second answer does not see the first
    assert weights is None
    torch.testing.assert_close(ours.double(), masked(query, key, value, seen, 0.5), atol=1e-6, rtol=1e-5)


def test_without_segments_a_mask_is_applied_and_a_tower_keeps_its_frames_apart() -> None:
    query, key, value = torch.randn(3, 1, 2, 5, 8, generator=torch.Generator().manual_seed(0))
    layer = nn.Module()
    layer.is_causal = False
    mask = torch.rand(1, 1, 5, 5, generator=torch.Generator().manual_seed(1)) > 0.3
    mask |= torch.eye(5, dtype=torch.bool)
    ours, _ = attend(layer, query, key, value, mask, scaling=0.5)
    torch.testing.assert_close(ours.double(), masked(query, key, value, mask[0, 0], 0.5), atol=1e-6, rtol=1e-5)
    bounds = torch.tensor([0, 2, 5], dtype=torch.int32)
    frames, _ = attend(layer, query, key, value, None, scaling=0.5, is_causal=False, cu_seq_lens_q=bounds)
    seen = seen_by([2, 3], [2, 3], causal=False)
    torch.testing.assert_close(frames.double(), masked(query, key, value, seen, 0.5), atol=1e-6, rtol=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="the variable-length kernel runs on CUDA alone")
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("causal", [True, False])
def test_the_kernel_on_a_gpu_is_the_loop(case: tuple[list[int], list[int]], causal: bool) -> None:
    lengths, key_lengths = case
    generator = torch.Generator("cuda").manual_seed(0)
    query = torch.randn(1, 4, sum(lengths), 64, generator=generator, device="cuda").bfloat16().requires_grad_()
    key, value = (
        torch.randn(1, 2, sum(key_lengths), 64, generator=generator, device="cuda").bfloat16().requires_grad_()
        for _ in range(2)
    )
    bounds, key_bounds = bounds_of(lengths).cuda(), bounds_of(key_lengths).cuda()
    segments = Segments(
        tuple(lengths), bounds, tuple(key_lengths), bounds if lengths == key_lengths else key_bounds, None,
        max(lengths), max(key_lengths),
    )  # fmt: skip
    torch.cuda.set_sync_debug_mode("error")
    try:
        ours, _ = attend(nn.Module(), query, key, value, None, is_causal=causal, segments=segments)
        ours.sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    expected = by_segment(query.float(), key.float(), value.float(), lengths, key_lengths, causal)
    torch.testing.assert_close(ours.float(), expected, atol=2e-2, rtol=2e-2)
    assert query.grad is not None
    assert query.grad.isfinite().all()


@pytest.mark.slow
def test_the_operator_is_sound_and_its_flops_are_those_of_the_pairs() -> None:
    query, key, value = torch.randn(3, 1, 2, 7, 8, generator=torch.Generator().manual_seed(0)).double()
    bounds = bounds_of([3, 4])
    inputs = (*(each.requires_grad_() for each in (query, key, value)), bounds, bounds, True, 0.3)
    torch.library.opcheck(attention_by_segment, inputs)
    with FlopCounterMode(display=False) as counter:
        attention_by_segment(*inputs)[0].sum().backward()
    assert counter.get_total_flops() == (4 + 10) * 2 * 8 * (9 + 16)


def test_the_kernel_runs_from_ampere_on_and_what_it_cannot_compute_falls_back() -> None:
    half, whole = torch.bfloat16, torch.float32
    volta, turing, ampere, ada, hopper, blackwell = (7, 0), (7, 5), (8, 0), (8, 9), (9, 0), (10, 0)
    assert way_of("cpu", None, whole, 64) == way_of("cpu", None, half, 64) == "operator"
    assert {way_of("cuda", each, half, 128) for each in (ampere, ada, hopper, blackwell)} == {"kernel"}
    assert {way_of("cuda", each, torch.float16, 128) for each in (volta, turing)} == {"segments"}
    assert {way_of("cuda", hopper, whole, 128), way_of("cuda", hopper, half, 20)} == {"segments"}
    assert (way_of("cuda", hopper, half, 256), way_of("cuda", hopper, half, 264)) == ("kernel", "segments")


def test_bounds_say_the_lengths() -> None:
    found = of_bounds(torch.tensor([0, 4, 5, 9], dtype=torch.int32))
    assert (found.lengths, found.longest, found.key_lengths) == ((4, 1, 4), 4, (4, 1, 4))
    assert found.key_bounds is found.bounds  # cuDNN asks for the same tensor


def test_tensors_may_lie_in_memory_as_they_like() -> None:
    generator = torch.Generator().manual_seed(0)
    plain = [torch.randn(1, 2, 7, 8, generator=generator).requires_grad_() for _ in range(3)]
    turned = [each.detach().mT.contiguous().mT.requires_grad_() for each in plain]
    weights, bounds = torch.randn(1, 7, 2, 8, generator=generator), bounds_of([3, 4])
    found = []
    for inputs, upper in ((plain, weights), (turned, weights.mT.contiguous().mT)):
        ours, _ = attention_by_segment(*inputs, bounds, bounds, True, 0.3)
        found.append((ours, *torch.autograd.grad(ours, inputs, upper)))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)
