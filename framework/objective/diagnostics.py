"""What a policy's update looks like from inside, as sums and extremes that add up over micro-batches and ranks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from framework.objective.correction import token_weights
from framework.objective.kl import k3
from framework.objective.normalisation import sum_over_ranks
from framework.objective.policy_loss import Surrogate
from framework.objective.token_logprobs import TokenScores

SUMS = ("tokens", "entropy", "advantage", "clip_low", "clip_high", "dual_clip", "approximate_kl")
REFERENCE_SUMS = ("reference_tokens", "reference_kl")
ENGINE_SUMS = ("engine_tokens", "engine_error", "engine_kl", "engine_weight", "engine_weight_square", "engine_outside")
STALE_SUMS = ("stale_tokens", "stale_kl", "stale_outside")
ALL_SUMS = SUMS + REFERENCE_SUMS + ENGINE_SUMS + STALE_SUMS
PEAKS = ("ratio_max", "ratio_min", "advantage_max", "advantage_min", "engine_error_max", "engine_weight_max")
"""Largest values; of a minimum, the largest of the negated values."""


@dataclass(frozen=True)
class Diagnostics:
    """`sums` `(len(ALL_SUMS),)` and `peaks` `(len(PEAKS),)` float64. Add those of a step's micro-batches, then take
    them `over_ranks`, then read the `metrics`.
    """

    sums: Tensor
    peaks: Tensor

    @classmethod
    def zeros(cls, device: torch.device) -> Diagnostics:
        """Those of no tokens."""
        sums = torch.zeros(len(ALL_SUMS), dtype=torch.float64, device=device)
        return cls(sums, torch.full((len(PEAKS),), -torch.inf, dtype=torch.float64, device=device))

    def __add__(self, other: Diagnostics) -> Diagnostics:
        return Diagnostics(self.sums + other.sums, torch.maximum(self.peaks, other.peaks))

    def all_reduce(self, group: dist.ProcessGroup | None) -> Diagnostics:
        """Those of all ranks of `group`; these without a group."""
        peaks = self.peaks.clone()
        if group is not None:
            dist.all_reduce(peaks, op=dist.ReduceOp.MAX, group=group)
        return Diagnostics(sum_over_ranks(self.sums, group), peaks)

    def metrics(self) -> dict[str, float]:
        """Means and extremes by name; those of the reference and the engine where their log-probabilities were given.

        `entropy` and `approximate_kl` (of the old policy to this one, k3) are in nats. Clip shares are of tokens.
        What begins with engine is of tokens that the weights of before the batch's first update drew, and so tells of
        engine and trainer alone: `engine_error` is the mean of |log pi_train - log pi_engine|; `engine_ess` the
        effective sample size under w = pi_train / pi_engine, (sum w)^2 / (n sum w^2), 1 where there is no mismatch;
        `engine_outside_share` the share whose weight the correction found out of bounds. `stale_share` of all tokens
        were drawn by older weights; `stale_kl` tells how far the policy has moved since, too.
        """
        sums, peaks = dict(zip(ALL_SUMS, self.sums.tolist(), strict=True)), self.peaks.tolist()
        most = dict(zip(PEAKS, peaks, strict=True))
        found: dict[str, float] = {}
        if tokens := sums["tokens"]:
            found |= {name: sums[name] / tokens for name in ("entropy", "approximate_kl")}
            found |= {f"{name}_share": sums[name] / tokens for name in ("clip_low", "clip_high", "dual_clip")}
            found |= {"ratio_min": -most["ratio_min"], "ratio_max": most["ratio_max"]}
            found |= {"advantage_mean": sums["advantage"] / tokens}
            found |= {"advantage_min": -most["advantage_min"], "advantage_max": most["advantage_max"]}
        if tokens := sums["reference_tokens"]:
            found["reference_kl"] = sums["reference_kl"] / tokens
        if tokens := sums["engine_tokens"]:
            found |= {name: sums[name] / tokens for name in ("engine_error", "engine_kl")}
            found |= {name: most[name] for name in ("engine_error_max", "engine_weight_max")}
            found["engine_weight_mean"] = sums["engine_weight"] / tokens
            found["engine_ess"] = sums["engine_weight"] ** 2 / (tokens * sums["engine_weight_square"])
            found["engine_outside_share"] = sums["engine_outside"] / tokens
        if tokens := sums["stale_tokens"]:
            found["stale_share"] = tokens / sums["tokens"]
            found |= {"stale_kl": sums["stale_kl"] / tokens, "stale_outside_share": sums["stale_outside"] / tokens}
        return found


@torch.no_grad()
def diagnose(
    scored: TokenScores,
    surrogate: Surrogate,
    advantages: Tensor,
    old: Tensor,
    engine: Tensor | None = None,
    outside: Tensor | None = None,
    stale: Tensor | None = None,
    reference_kl: Tensor | None = None,
) -> Diagnostics:
    """Of a micro-batch's tokens, all `(n,)`: what the policy says of them and what the loss made of it, their
    advantages, their log-probabilities before the first update and in the engine, where the correction's weights were
    `outside` their bounds (bool), which of them older weights drew (`stale`, bool), and the unweighted divergence from
    a reference.
    """
    ratio = surrogate.ratio
    values = {
        "tokens": torch.ones_like(ratio),
        "entropy": scored.entropies,
        "advantage": advantages,
        "clip_low": surrogate.low,
        "clip_high": surrogate.high,
        "dual_clip": surrogate.dual,
        "approximate_kl": k3(old, scored.logprobs),
    }
    peaks = {"ratio_max": ratio, "ratio_min": -ratio, "advantage_max": advantages, "advantage_min": -advantages}
    if reference_kl is not None:
        values |= {"reference_tokens": torch.ones_like(ratio), "reference_kl": reference_kl}
    if engine is not None:
        nowhere = torch.zeros_like(ratio, dtype=torch.bool)
        outside, stale = nowhere if outside is None else outside, nowhere if stale is None else stale
        values |= {"stale_tokens": stale, "stale_kl": k3(engine, old)[stale], "stale_outside": outside[stale]}
        return _of(values, peaks) + mismatch(old[~stale], engine[~stale], outside[~stale])
    return _of(values, peaks)


@torch.no_grad()
def mismatch(old: Tensor, engine: Tensor, outside: Tensor | None = None) -> Diagnostics:
    """Of tokens `(n,)` that equal weights drew and scored, their log-probabilities in the trainer (`old`) and in the
    engine, and where the correction's weights were `outside` their bounds (bool).
    """
    weight, error = token_weights(old, engine), (old - engine).abs()
    values = {"engine_tokens": torch.ones_like(old), "engine_error": error, "engine_kl": k3(engine, old)}
    values |= {"engine_weight": weight, "engine_weight_square": weight.double() ** 2}
    values |= {"engine_outside": torch.zeros_like(old) if outside is None else outside}
    return _of(values, {"engine_error_max": error, "engine_weight_max": weight})


def _of(values: Mapping[str, Tensor], peaks: Mapping[str, Tensor]) -> Diagnostics:
    """`values` `(n,)` added up, and of `peaks` `(n,)` the largest."""
    nothing = next(iter(values.values())).new_zeros(0)
    return Diagnostics(
        torch.stack([values.get(name, nothing).sum(dtype=torch.float64) for name in ALL_SUMS]),
        torch.stack([_largest(peaks.get(name, nothing)) for name in PEAKS]),
    )


def _largest(values: Tensor) -> Tensor:
    """The largest of `values` `(n,)`, minus infinity where there are none."""
    return torch.cat([values.double(), values.new_full((1,), -torch.inf, dtype=torch.float64)]).max()
