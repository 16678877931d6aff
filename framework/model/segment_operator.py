"""Attention by segments on a CPU, as one operator: torch.compile and recomputation see a single call, whatever the
lengths, and results are written where they belong instead of being joined.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

FORWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
"""torch's kernel on CPUs, with the logarithms of the sums that its backward pass needs."""
BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


class Run(NamedTuple):
    """Segments of equal length that follow each other."""

    start: int
    """The first query."""
    key_start: int
    """The first key."""
    length: int
    """Queries of each segment."""
    key_length: int
    """Keys of each segment."""
    number: int
    """Number of segments."""

    def of_queries(self, row: Tensor) -> Tensor:
        """The run of `(1, heads, t, width)` as a batch, `(number, heads, length, width)`."""
        return self._batch(row, self.start, self.length)

    def of_keys(self, row: Tensor) -> Tensor:
        """As `of_queries`, of keys or values."""
        return self._batch(row, self.key_start, self.key_length)

    def mask(self, causal: bool, device: torch.device) -> Tensor | None:
        """Which keys each query sees, `(length, key_length)`; None: all, or those up to its own."""
        if not causal or self.length == self.key_length:
            return None
        whole = torch.ones(self.length, self.key_length, dtype=torch.bool, device=device)
        return whole.tril(self.key_length - self.length)

    def _batch(self, row: Tensor, start: int, length: int) -> Tensor:
        return row[0].narrow(1, start, self.number * length).unflatten(1, (self.number, length)).transpose(0, 1)


def runs_of(lengths: Sequence[int], key_lengths: Sequence[int]) -> list[Run]:
    """The runs of segments with these numbers of queries and of keys."""
    runs: list[Run] = []
    start = key_start = 0
    for length, key_length in zip(lengths, key_lengths, strict=True):
        if runs and (runs[-1].length, runs[-1].key_length) == (length, key_length):
            runs[-1] = runs[-1]._replace(number=runs[-1].number + 1)
        else:
            runs.append(Run(start, key_start, length, key_length, 1))
        start, key_start = start + length, key_start + key_length
    return runs


@torch.library.custom_op("language_action::attention_by_segment", mutates_args=())
def attention_by_segment(
    query: Tensor, key: Tensor, value: Tensor, bounds: Tensor, key_bounds: Tensor, causal: bool, scaling: float | None
) -> tuple[Tensor, Tensor]:
    """Attention within segments. Returns the outputs `(1, t, heads, width)`, and the logarithms of the sums of the
    exponential scores `(heads, t)`.

    Args:
        query: `(1, heads, t, width)`.
        key: `(1, key heads, s, width)`; each serves as many heads of queries.
        value: As `key`.
        bounds: Where segments of queries begin, and the last one ends, `(n + 1,)` int32.
        key_bounds: The same of keys.
        causal: Whether the queries of a segment, which end with its keys, see no later key.
        scaling: Factor of the scores. None: one over the root of `width`.
    """
    query, key, value = (_readable(each) for each in (query, key, value))
    _, heads, total, width = query.shape
    outputs = query.new_empty(1, total, heads, width)
    sums = query.new_empty(heads, total, dtype=_precise(query))
    for run in _runs_between(bounds, key_bounds):
        q, k, v = run.of_queries(query), *_repeated(run, key, value, heads)
        mask = run.mask(causal, query.device)
        ours, of_run = FORWARD(q, k, v, 0.0, causal and mask is None, attn_mask=_added(mask, q), scale=scaling)
        run.of_queries(outputs.transpose(1, 2)).copy_(ours)
        run.of_queries(sums[None, ..., None]).copy_(of_run[..., None])
    return outputs, sums


@torch.library.custom_op("language_action::attention_by_segment_backward", mutates_args=())
def attention_by_segment_backward(
    gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, outputs: Tensor, sums: Tensor,
    bounds: Tensor, key_bounds: Tensor, causal: bool, scaling: float | None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of queries, keys and values, by that of the outputs; see `attention_by_segment`."""
    gradient, query, key, value = (_readable(each) for each in (gradient, query, key, value))
    heads, key_heads = query.shape[1], key.shape[1]
    gradients = [torch.empty_like(each, memory_format=torch.contiguous_format) for each in (query, key, value)]
    for run in _runs_between(bounds, key_bounds):
        q, k, v = run.of_queries(query), *_repeated(run, key, value, heads)
        mask = run.mask(causal, query.device)
        upper, ours = (run.of_queries(each.transpose(1, 2)) for each in (gradient, outputs))
        of_run = run.of_queries(sums[None, ..., None])[..., 0]
        first, *others = BACKWARD(
            upper, q, k, v, ours, of_run, 0.0, causal and mask is None, attn_mask=_added(mask, q), scale=scaling
        )
        run.of_queries(gradients[0]).copy_(first)
        for each, found in zip(gradients[1:], others, strict=True):
            run.of_keys(each).copy_(found.unflatten(1, (key_heads, -1)).sum(2) if heads > key_heads else found)
    return gradients[0], gradients[1], gradients[2]


def _runs_between(bounds: Tensor, key_bounds: Tensor) -> list[Run]:
    return runs_of(bounds.diff().tolist(), key_bounds.diff().tolist())


def _repeated(run: Run, key: Tensor, value: Tensor, heads: int) -> tuple[Tensor, Tensor]:
    """Keys and values of a run, one for each of `heads`."""
    k, v = run.of_keys(key), run.of_keys(value)
    times = heads // k.shape[1]
    return (k, v) if times == 1 else (k.repeat_interleave(times, dim=1), v.repeat_interleave(times, dim=1))


def _readable(tensor: Tensor) -> Tensor:
    """The tensor as the kernel reads it, which takes the numbers of a head to follow each other, and does not check."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _added(mask: Tensor | None, query: Tensor) -> Tensor | None:
    """What the kernel adds to scores under a mask of what is seen."""
    return None if mask is None else query.new_zeros(mask.shape).masked_fill_(~mask, -torch.inf)


def _precise(tensor: Tensor) -> torch.dtype:
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


@attention_by_segment.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    one, heads, total, width = query.shape
    return query.new_empty(one, total, heads, width), query.new_empty(heads, total, dtype=_precise(query))


@attention_by_segment_backward.register_fake
def _(gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    return query.new_empty(query.shape), key.new_empty(key.shape), value.new_empty(value.shape)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.causal, ctx.scaling = inputs
    ctx.save_for_backward(*tensors, *output)
    ctx.mark_non_differentiable(output[1])


def _gradients(context: Any, gradient: Tensor, _: Any) -> tuple[Tensor | None, ...]:
    query, key, value, bounds, key_bounds, outputs, sums = context.saved_tensors
    found = attention_by_segment_backward(
        gradient, query, key, value, outputs, sums, bounds, key_bounds, context.causal, context.scaling
    )
    return (*found, None, None, None, None)


attention_by_segment.register_autograd(_gradients, setup_context=_keep)


@register_flop_formula(torch.ops.language_action.attention_by_segment, get_raw=True)
def _forward_flops(
    query: Tensor, key: Tensor, value: Tensor, bounds: Tensor, key_bounds: Tensor, *_: Any, **__: Any
) -> int:
    """FLOPs of two products a segment, as torch counts those of its own attention."""
    pairs = int((bounds.diff().long() * key_bounds.diff().long()).sum())
    return 4 * query.shape[1] * query.shape[3] * pairs


@register_flop_formula(torch.ops.language_action.attention_by_segment_backward, get_raw=True)
def _backward_flops(
    gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, outputs: Tensor, sums: Tensor, *rest: Any, **_: Any
) -> int:
    """FLOPs of five products a segment: the scores are computed again."""
    return _forward_flops(query, key, value, rest[0], rest[1]) * 5 // 2
