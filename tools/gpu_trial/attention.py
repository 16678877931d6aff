"""Step: the ways to attend within the samples of a packed row, at 4k and 32k tokens."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from framework.model.segments import attend, by_segment, of_bounds
from tools.bench.attention import mixed_lengths
from tools.gpu_trial.device import seconds_of
from tools.gpu_trial.setting import Setting

HEADS, KEY_HEADS, WIDTH = 16, 8, 128
"""Those of Qwen3-VL-2B's language model."""
LONGEST_MASK = 8192
"""Tokens of a row up to which a dense mask is tried: at 32k its scores alone are 32 GiB where no kernel fuses them."""
Way = Callable[[Tensor, Tensor, Tensor], Tensor]


def attention_paths(setting: Setting) -> dict[str, Any]:
    """Milliseconds and peak memory of both passes in bfloat16, and the gap of outputs and gradients to float32."""
    totals = (256, 512) if setting.dry else (4096, 32768)
    figures = {}
    for total in totals:
        figures[str(total)] = _at(setting, total)
        setting.keep(figures)
    return figures


def _at(setting: Setting, total: int) -> dict[str, Any]:
    lengths = mixed_lengths(total)
    torch.manual_seed(0)
    inputs = [
        torch.randn(1, heads, total, WIDTH, device=setting.device, dtype=torch.bfloat16, requires_grad=True)
        for heads in (HEADS, KEY_HEADS, KEY_HEADS)
    ]
    exact = [each.detach().float().requires_grad_() for each in inputs]
    reference = _both_passes(lambda q, k, v: by_segment(q, k, v, lengths, lengths, True), exact)
    figures: dict[str, Any] = {"samples": len(lengths)}
    for name, make in WAYS.items():
        try:
            figures[name] = _measure(setting, make(setting, lengths), inputs, reference)
        except (ImportError, RuntimeError, ValueError, NotImplementedError) as error:
            figures[name] = {"refused": f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"}
    return figures


def _measure(setting: Setting, way: Way, inputs: list[Tensor], reference: list[Tensor]) -> dict[str, float]:
    found = _both_passes(way, inputs)
    gaps = [float((ours.float() - exact).norm() / exact.norm()) for ours, exact in zip(found, reference, strict=True)]
    del found
    if setting.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    seconds = seconds_of(lambda: _both_passes(way, inputs), setting)
    peak = torch.cuda.max_memory_allocated() - before if setting.device == "cuda" else 0
    return {"ms": 1e3 * seconds, "peak_mib": peak / 2**20, "output_gap": gaps[0], "gradient_gap": max(gaps[1:])}


def _both_passes(way: Way, inputs: list[Tensor]) -> list[Tensor]:
    """Outputs `(1, t, heads, width)`, and the gradients of queries, keys and values."""
    outputs = way(*inputs)
    return [outputs.detach(), *torch.autograd.grad(outputs.float().square().sum(), inputs)]


# The ways


def _varlen(setting: Setting, lengths: list[int]) -> Way:
    segments = of_bounds(_bounds(setting, lengths))
    layer = nn.Identity()
    layer.is_causal = True  # type: ignore[assignment]
    return lambda q, k, v: attend(layer, q, k, v, None, segments=segments)[0]


def _segments(setting: Setting, lengths: list[int]) -> Way:
    return lambda q, k, v: by_segment(q, k, v, lengths, lengths, True)


def _flash(setting: Setting, lengths: list[int]) -> Way:
    from flash_attn import flash_attn_varlen_func

    bounds, longest = _bounds(setting, lengths), max(lengths)

    def way(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        rows = (each[0].transpose(0, 1) for each in (query, key, value))
        outputs: Tensor = flash_attn_varlen_func(*rows, bounds, bounds, longest, longest, causal=True)
        return outputs[None]

    return way


def _padded(setting: Setting, lengths: list[int]) -> Way:
    """Causal `sdpa` over samples that are padded to the longest, which needs no mask: padding is behind."""
    real = (torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]).to(setting.device)
    rows, columns = real.nonzero(as_tuple=True)

    def way(*inputs: Tensor) -> Tensor:
        padded = []
        for each in inputs:
            rest = each.new_zeros(len(lengths), max(lengths), each.shape[1], WIDTH)
            padded.append(rest.index_put((rows, columns), each[0].transpose(0, 1)).transpose(1, 2))
        outputs = F.scaled_dot_product_attention(*padded, is_causal=True, enable_gqa=True)
        return outputs.transpose(1, 2)[rows, columns][None]

    return way


def _flex(setting: Setting, lengths: list[int]) -> Way:
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    sample = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths)).to(setting.device)

    def seen(batch: Any, head: Any, query: Tensor, key: Tensor) -> Tensor:
        return (sample[query] == sample[key]) & (query >= key)

    mask = create_block_mask(seen, None, None, sum(lengths), sum(lengths), device=setting.device)
    # Uncompiled it computes all scores, and compiled it needs a compiler that a dry run's machine may lack.
    kernel: Any = flex_attention if setting.dry else torch.compile(flex_attention)
    return lambda q, k, v: kernel(q, k, v, block_mask=mask, enable_gqa=True).transpose(1, 2)


def _dense(setting: Setting, lengths: list[int]) -> Way:
    if sum(lengths) > LONGEST_MASK:
        raise ValueError(f"a dense mask is not tried beyond {LONGEST_MASK} tokens")
    sample = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths)).to(setting.device)
    mask = (sample[:, None] == sample).tril()
    attention = functools.partial(F.scaled_dot_product_attention, attn_mask=mask, enable_gqa=True)
    return lambda q, k, v: attention(q, k, v).transpose(1, 2)


def _bounds(setting: Setting, lengths: list[int]) -> Tensor:
    return F.pad(torch.tensor(lengths).cumsum(0, dtype=torch.int32), (1, 0)).to(setting.device)


WAYS: dict[str, Callable[[Setting, list[int]], Way]] = {
    "varlen, as the model attends": _varlen,
    "flash-attn": _flash,
    "sdpa, a call for each sample": _segments,
    "sdpa, padded": _padded,
    "flex": _flex,
    "sdpa, dense mask": _dense,
}
