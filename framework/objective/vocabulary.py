"""Softmax over a vocabulary that may be cut over ranks: log-probabilities and entropies of which each rank computes its
share, from its own logits. All logits are never in one place (Shoeybi et al. 2019, arXiv 1909.08053, section 3).

With z the logits of a position, m their maximum and s the sum of exp(z - m), log p_i = z_i - m - log s, and the entropy
H is log s - sum of exp(z - m) (z - m) / s. So ranks tell each other m, s and the sums, a few numbers a position. The
gradients are local: d log p_k / d z_i = [i = k] - p_i and d H / d z_i = -p_i (log p_i + H).
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
    """Columns `start` to `stop` of a vocabulary of `total` tokens; the ranks of the one-dimensional `mesh` have the
    others (None: there are no others).
    """

    start: int
    stop: int
    total: int
    mesh: DeviceMesh | None = None

    def all_sum(self, values: Tensor) -> Tensor:
        """The sum over ranks."""
        return self._reduced(values, "sum")

    def all_max(self, values: Tensor) -> Tensor:
        """The maximum over ranks."""
        return self._reduced(values, "max")

    def _reduced(self, values: Tensor, how: str) -> Tensor:
        if self.mesh is None:
            return values
        return DTensor.from_local(values, self.mesh, [Partial(how)], run_check=False).full_tensor()


class SoftmaxStats(NamedTuple):
    """Of each position: `logprobs` `(n,)` of its target, `entropies` `(n,)` in nats, the mean of all log-probabilities
    (`mean` `(n,)`), and whether the target is the first of the most probable (`hits` `(n,)`, bool). Fields that were
    not asked for are zeros.
    """

    logprobs: Tensor
    entropies: Tensor
    mean: Tensor
    hits: Tensor


def local_logits(logits: Tensor) -> tuple[Tensor, VocabShard]:
    """This rank's logits `(n, columns)` of `(n, vocabulary)`, a DTensor whose columns are cut or a plain tensor, and
    which columns they are. Raises `ValueError` for logits that are cut in any other way.
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
    logits: Tensor, targets: Tensor, share: VocabShard, entropy: bool = False, mean: bool = False
) -> SoftmaxStats:
    """What is known of the softmax of a `share`'s `logits` `(n, columns)`, float32 or float64, at `targets` `(n,)`, ids
    of the whole vocabulary (collective over the share's mesh). Logits of -inf have no probability and no gradient.
    `entropy` and `mean` are computed where they are asked for.
    """
    return SoftmaxStats(*_Softmax.apply(logits, targets, share, entropy, mean))


class _Softmax(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, targets: Tensor, share: VocabShard, entropy: bool, mean: bool
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        local, first = logits.max(dim=-1)
        most = share.all_max(local)
        place = targets - share.start
        here = (place >= 0) & (place < logits.shape[-1])
        place = place.clamp(0, logits.shape[-1] - 1)
        target = torch.where(here, logits.gather(-1, place[:, None])[:, 0], 0.0)
        before = (local == most) & (first + share.start < targets)
        weights = (logits - most[:, None]).exp_()
        sums = [weights.sum(dim=-1), target, before.to(logits.dtype)]
        # What has no probability adds nothing: -w log w is 0 at w = 0.
        sums += [torch.special.entr(weights).sum(dim=-1)] if entropy else []
        sums += [logits.sum(dim=-1)] if mean else []
        total, target, before, *more = share.all_sum(torch.stack(sums)).unbind()
        logarithm = total.log()
        entropies = logarithm + more[0] / total if entropy else torch.zeros_like(total)
        average = more[-1] / share.total - most - logarithm if mean else torch.zeros_like(total)
        ctx.save_for_backward(logits, most, logarithm, entropies, place, here)
        ctx.total = share.total
        ctx.set_materialize_grads(False)
        hits = (target == most) & (before == 0)
        ctx.mark_non_differentiable(hits, *([] if entropy else [entropies]), *([] if mean else [average]))
        return target - most - logarithm, entropies, average, hits

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *given: Tensor | None) -> tuple[Tensor | None, ...]:
        of_logprobs, of_entropies, of_mean, _ = given
        logits, most, logarithm, entropies, place, here = ctx.saved_tensors
        shares = (logits - most[:, None]).sub_(logarithm[:, None]).exp_()
        surprise = None if of_entropies is None else torch.special.entr(shares)
        parts = [part for part in (of_logprobs, of_mean) if part is not None]
        parts += [] if of_entropies is None else [of_entropies * entropies]
        gradient = shares.mul_(-sum(parts, torch.zeros_like(most))[:, None])
        if of_entropies is not None and surprise is not None:
            gradient.addcmul_(surprise, of_entropies[:, None])
        if of_mean is not None:
            gradient.add_(of_mean[:, None] / ctx.total)
        if of_logprobs is not None:
            gradient.scatter_add_(-1, place[:, None], torch.where(here, of_logprobs, 0.0)[:, None])
        return gradient, None, None, None, None
