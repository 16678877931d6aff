"""Softmax over a vocabulary that is sharded over ranks: each rank computes on its own logits, and no rank ever has all
of them (Shoeybi et al. 2019, arXiv 1909.08053, section 3).

For the logits z of a position,

    m       = max_i z_i
    s       = sum_i exp(z_i - m)
    log p_i = z_i - m - log s
    H       = log s - sum_i exp(z_i - m) (z_i - m) / s

Ranks exchange m, s and the sums, a few numbers per position. The gradients are local:

    d log p_k / d z_i = [i = k] - p_i
    d H / d z_i       = -p_i (log p_i + H)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Shard


@dataclass(frozen=True)
class VocabShard:
    """The columns of a vocabulary that this rank holds, and its collectives over the ranks with the other columns."""

    start: int
    """First column."""
    stop: int
    """End of the columns, exclusive."""
    total: int
    """Size of the whole vocabulary."""
    mesh: DeviceMesh | None = None
    """One-dimensional mesh of the ranks that share the vocabulary. None: this rank has all columns."""

    def all_sum(self, values: Tensor) -> Tensor:
        """The sum over ranks."""
        return self._all_reduce(values, "sum")

    def all_max(self, values: Tensor) -> Tensor:
        """The maximum over ranks."""
        return self._all_reduce(values, "max")

    def _all_reduce(self, values: Tensor, operation: str) -> Tensor:
        if self.mesh is None:
            return values
        return DTensor.from_local(values, self.mesh, [Partial(operation)], run_check=False).full_tensor()


class SoftmaxStats(NamedTuple):
    """Statistics of the softmax at `n` positions; those that were not requested are zeros."""

    logprobs: Tensor
    """Log-probability of the target, `(n,)`."""
    entropies: Tensor
    """Entropy, `(n,)` in nats."""
    mean: Tensor
    """Mean of all log-probabilities, `(n,)`."""
    hits: Tensor
    """Whether the target is the first of the most probable tokens, `(n,)` bool."""


def local_logits(logits: Tensor) -> tuple[Tensor, VocabShard]:
    """This rank's logits `(n, columns)` of `(n, vocabulary)`, and which columns they are.

    `logits` is a plain tensor, or a DTensor whose columns are sharded. Raises `ValueError` for any other placement.
    """
    if not isinstance(logits, DTensor):
        return logits, VocabShard(0, logits.shape[-1], logits.shape[-1])
    mesh, total = logits.device_mesh, logits.shape[-1]
    if logits.placements != (Shard(logits.dim() - 1),) or total % mesh.size():
        raise ValueError(f"logits {tuple(logits.shape)} lie as {logits.placements}; cut their columns into equal parts")
    columns = total // mesh.size()
    start = mesh.get_local_rank() * columns
    return logits.to_local(), VocabShard(start, start + columns, total, mesh)


def softmax_stats(
    logits: Tensor, targets: Tensor, shard: VocabShard, entropy: bool = False, mean: bool = False
) -> SoftmaxStats:
    """Statistics of the softmax, collective over the shard's mesh.

    Args:
        logits: This rank's logits, `(n, columns)` float32 or float64. A logit of -inf has probability 0 and no
            gradient.
        targets: Target tokens as ids of the whole vocabulary, `(n,)`.
        shard: The columns that `logits` holds.
        entropy: Whether to compute the entropies.
        mean: Whether to compute the means of all log-probabilities.
    """
    return SoftmaxStats(*_Softmax.apply(logits, targets, shard, entropy, mean))


class _Softmax(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, targets: Tensor, shard: VocabShard, entropy: bool, mean: bool
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        local_peak, first = logits.max(dim=-1)
        peak = shard.all_max(local_peak)
        column = targets - shard.start
        here = (column >= 0) & (column < logits.shape[-1])
        column = column.clamp(0, logits.shape[-1] - 1)
        target = torch.where(here, logits.gather(-1, column[:, None])[:, 0], 0.0)
        earlier = (local_peak == peak) & (first + shard.start < targets)
        weights = (logits - peak[:, None]).exp_()
        sums = [weights.sum(dim=-1), target, earlier.to(logits.dtype)]
        # A token without probability adds nothing: -w log w is 0 at w = 0.
        sums += [torch.special.entr(weights).sum(dim=-1)] if entropy else []
        sums += [logits.sum(dim=-1)] if mean else []
        total, target, earlier, *more = shard.all_sum(torch.stack(sums)).unbind()
        log_total = total.log()
        entropies = log_total + more[0] / total if entropy else torch.zeros_like(total)
        average = more[-1] / shard.total - peak - log_total if mean else torch.zeros_like(total)
        ctx.save_for_backward(logits, peak, log_total, entropies, column, here)
        ctx.total = shard.total
        ctx.set_materialize_grads(False)
        hits = (target == peak) & (earlier == 0)
        ctx.mark_non_differentiable(hits, *([] if entropy else [entropies]), *([] if mean else [average]))
        return target - peak - log_total, entropies, average, hits

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        of_logprobs, of_entropies, of_mean, _ = gradients
        logits, peak, log_total, entropies, column, here = ctx.saved_tensors
        probabilities = (logits - peak[:, None]).sub_(log_total[:, None]).exp_()
        entropy_terms = None if of_entropies is None else torch.special.entr(probabilities)
        parts = [part for part in (of_logprobs, of_mean) if part is not None]
        parts += [] if of_entropies is None else [of_entropies * entropies]
        gradient = probabilities.mul_(-sum(parts, torch.zeros_like(peak))[:, None])
        if of_entropies is not None and entropy_terms is not None:
            gradient.addcmul_(entropy_terms, of_entropies[:, None])
        if of_mean is not None:
            gradient.add_(of_mean[:, None] / ctx.total)
        if of_logprobs is not None:
            gradient.scatter_add_(-1, column[:, None], torch.where(here, of_logprobs, 0.0)[:, None])
        return gradient, None, None, None, None
