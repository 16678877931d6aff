"""Attention over the samples of one row, by their lengths: no mask is built, nothing computed between samples."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from framework.model.segment_operator import attention_by_segment, runs_of

LANGUAGE, TOWER = "varlen", "varlen_flash"
"""Names of `attend` in `transformers`: for language models, and for vision towers, which call once for all images only
what is called flash."""


@dataclass(frozen=True)
class Segments:
    """Where one row of queries, and one of keys and values, begin and end their segments. The host knows all of it."""

    lengths: tuple[int, ...]
    """Queries of each segment."""
    bounds: Tensor
    """The first query of each segment and the end of the last, `(n + 1,)` int32 on the device of the queries."""
    key_lengths: tuple[int, ...]
    """Keys of each segment. Under causal attention at least as many as queries: the last query sees the last key."""
    key_bounds: Tensor
    """As `bounds`, of the keys; the same tensor where they are equal."""
    keys: Tensor | None
    """Places in the row of the keys and values, `(k,)` int64, where segments share some. None: the row itself."""
    longest: int
    """The longest of `lengths`."""
    longest_keys: int
    """The longest of `key_lengths`."""


def of_bounds(bounds: Tensor) -> Segments:
    """Segments that share no keys, by their `bounds` `(n + 1,)`, which are read from the device."""
    lengths = tuple(bounds.diff().tolist())
    return Segments(lengths, bounds, lengths, bounds, None, max(lengths), max(lengths))


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    segments: Segments | None = None,
    **rest: Any,
) -> tuple[Tensor, None]:
    """Attention as `transformers` calls it (`AttentionInterface`). Without `segments` it is that of `sdpa`, of a vision
    tower within its frames.

    Args:
        module: The attention layer, which knows whether it is causal.
        query: `(1, heads, t, width)`.
        key: `(1, key heads, t, width)`.
        value: As `key`.
        attention_mask: None where there are segments.
        dropout: Share of the weights that are dropped; 0 where there are segments.
        scaling: Factor of the scores. None: one over the root of `width`.
        is_causal: Whether a query sees no later key. None: as the module says.
        segments: Bounds of the segments.
        rest: What other implementations need; a tower's frames end at `cu_seq_lens_q`.

    Returns `(1, t, heads, width)`, and no weights.
    """
    if segments is None and "cu_seq_lens_q" in rest:
        segments = of_bounds(rest["cu_seq_lens_q"])
    if segments is None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        outputs = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, is_causal=is_causal, **rest
        )
        return outputs[0], None
    causal = bool(getattr(module, "is_causal", True)) if is_causal is None else is_causal
    if segments.keys is not None:
        key, value = key.index_select(2, segments.keys), value.index_select(2, segments.keys)
    query, key, value = _of_one_type(query, key, value)
    capability = _capability(query.device) if query.is_cuda else None
    way = way_of(query.device.type, capability, query.dtype, query.shape[-1])
    if way == "kernel":
        return _kernel(query, key, value, segments, causal, scaling), None
    if way == "operator":
        outputs, _ = attention_by_segment(query, key, value, segments.bounds, segments.key_bounds, causal, scaling)
        return outputs, None
    return by_segment(query, key, value, segments.lengths, segments.key_lengths, causal, scaling), None


def way_of(
    device: str, capability: tuple[int, int] | None, dtype: torch.dtype, width: int
) -> Literal["kernel", "operator", "segments"]:
    """How `attend` computes segments: by torch's variable-length `kernel`, by our `operator` on CPUs, or `segments` one
    call after another, which any device and type can.

    The kernel is FlashAttention-2 (Dao 2023, arXiv 2307.08691): half precision, heads of at most 256 numbers in steps
    of 8, and GPUs from Ampere on, with a CUDA `capability` (major, minor) of 8.0. Older ones (Volta, Turing) fall back.
    """
    if device == "cpu":
        return "operator"
    fits = dtype in (torch.bfloat16, torch.float16) and width % 8 == 0 and width <= 256
    return "kernel" if fits and capability is not None and capability >= (8, 0) else "segments"


@functools.cache
def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)


def _of_one_type(*tensors: Tensor) -> list[Tensor]:
    """The tensors in the type of autocast, or of the last: norms of queries and keys may leave them in float32."""
    device = tensors[-1].device.type
    wanted = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else tensors[-1].dtype
    return [tensor.to(wanted) for tensor in tensors]


def _kernel(query: Tensor, key: Tensor, value: Tensor, of: Segments, causal: bool, scaling: float | None) -> Tensor:
    """torch's variable-length kernel: FlashAttention, or cuDNN's where it is faster (on Hopper, from torch 2.15)."""
    from torch.nn.attention.varlen import varlen_attn

    heads, key_heads = query.shape[1], key.shape[1]
    grouped: dict[str, Any] = {}
    if heads != key_heads and _kernel_groups():
        grouped = {"enable_gqa": True}
    elif heads != key_heads:
        key, value = (each.repeat_interleave(heads // key_heads, dim=1) for each in (key, value))
    query, key, value = (each[0].transpose(0, 1) for each in (query, key, value))
    outputs = varlen_attn(
        query,
        key,
        value,
        of.bounds,
        of.key_bounds,
        of.longest,
        of.longest_keys,
        scale=scaling,
        window_size=(-1, 0) if causal else (-1, -1),
        **grouped,
    )
    assert isinstance(outputs, Tensor)
    return outputs[None]


@functools.cache
def _kernel_groups() -> bool:
    """Whether the kernel takes fewer heads of keys than of queries (torch 2.13 on)."""
    import inspect

    from torch.nn.attention.varlen import varlen_attn

    return "enable_gqa" in inspect.signature(varlen_attn).parameters


@torch.compiler.disable
def by_segment(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    lengths: Sequence[int],
    key_lengths: Sequence[int],
    causal: bool,
    scaling: float | None = None,
) -> Tensor:
    """Attention of each segment by itself, in any type on any device: `(1, t, heads, width)`.

    Segments of equal length are one call where they follow each other. A causal segment with more keys than queries
    ends them together: query i of q sees the first k - q + 1 + i of k keys.
    """
    outputs = []
    for run in runs_of(lengths, key_lengths):
        q, k, v = run.of_queries(query), run.of_keys(key), run.of_keys(value)
        mask = run.mask(causal, q.device)
        ours = F.scaled_dot_product_attention(
            q, k, v, mask, is_causal=causal and mask is None, scale=scaling, enable_gqa=True
        )
        outputs.append(ours.transpose(1, 2).flatten(0, 1))
    return torch.cat(outputs)[None]


def register() -> None:
    """Make `attend` known to `transformers`. Rows without segments get the masks of `sdpa`."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

    for name in (LANGUAGE, TOWER):
        AttentionInterface.register(name, attend)
        AttentionMaskInterface.register(name, sdpa_mask)
