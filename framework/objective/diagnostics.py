"""Diagnostics of a policy update, as sums and maxima that add up over micro-batches and ranks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from framework.objective.correction import token_weights
from framework.objective.kl import k3
from framework.objective.normalisation import sum_over_ranks
from framework.objective.policy_loss import TokenLosses
from framework.objective.token_logprobs import TokenScores

SUMS = ("tokens", "entropy", "advantage", "clip_low", "clip_high", "dual_clip", "approximate_kl")
REFERENCE_SUMS = ("reference_tokens", "reference_kl")
ENGINE_SUMS = ("engine_tokens", "engine_error", "engine_kl", "engine_weight", "engine_weight_square", "engine_outside")
STALE_SUMS = ("stale_tokens", "stale_kl", "stale_outside")
ALL_SUMS = SUMS + REFERENCE_SUMS + ENGINE_SUMS + STALE_SUMS
PEAKS = ("ratio_max", "ratio_min", "advantage_max", "advantage_min", "engine_error_max", "engine_weight_max")
"""Maxima; a minimum is stored as the maximum of the negated values."""


@dataclass(frozen=True)
class Diagnostics:
    """Diagnostics of any number of tokens. Add those of a step's micro-batches, `all_reduce` them, read `metrics`."""

    sums: Tensor
    """Sums over tokens in the order of `ALL_SUMS`, float64."""
    peaks: Tensor
    """Maxima over tokens in the order of `PEAKS`, float64; minus infinity without tokens."""

    @classmethod
    def zeros(cls, device: torch.device) -> Diagnostics:
        """The diagnostics of no tokens."""
        sums = torch.zeros(len(ALL_SUMS), dtype=torch.float64, device=device)
        return cls(sums, torch.full((len(PEAKS),), -torch.inf, dtype=torch.float64, device=device))

    def __add__(self, other: Diagnostics) -> Diagnostics:
        return Diagnostics(self.sums + other.sums, torch.maximum(self.peaks, other.peaks))

    def all_reduce(self, group: dist.ProcessGroup | None) -> Diagnostics:
        """The diagnostics of all ranks of `group`; a copy without a group."""
        peaks = self.peaks.clone()
        if group is not None:
            dist.all_reduce(peaks, op=dist.ReduceOp.MAX, group=group)
        return Diagnostics(sum_over_ranks(self.sums, group), peaks)

    def metrics(self) -> dict[str, float]:
        """Means and extremes by name.

        - `entropy`, `approximate_kl` (old policy to current policy, k3): means over tokens, in nats.
        - `clip_low_share`, `clip_high_share`, `dual_clip_share`: shares of tokens whose ratio was clipped.
        - `ratio_*`, `advantage_*`: extremes, and the advantage's mean over tokens.
        - `reference_kl`: the mean divergence from the reference; absent without reference log-probabilities.
        - `engine_*`: absent without engine log-probabilities. They cover the tokens that the weights before the
          batch's first update sampled, and so measure engine against trainer alone. `engine_error` is the mean of
          |log pi_train - log pi_engine|. `engine_ess` is the effective sample size (sum w)^2 / (n sum w^2) under w =
          pi_train / pi_engine, 1 without mismatch. `engine_outside_share` is the share whose weight is out of the
          correction's bounds.
        - `stale_*`: absent without stale tokens. `stale_share` is the share of all tokens that older weights sampled.
          `stale_kl` and `stale_outside_share` also contain the policy's change since.
        """
        sums = dict(zip(ALL_SUMS, self.sums.tolist(), strict=True))
        peaks = dict(zip(PEAKS, self.peaks.tolist(), strict=True))
        results: dict[str, float] = {}
        if tokens := sums["tokens"]:
            results |= {name: sums[name] / tokens for name in ("entropy", "approximate_kl")}
            results |= {f"{name}_share": sums[name] / tokens for name in ("clip_low", "clip_high", "dual_clip")}
            results |= {"ratio_min": -peaks["ratio_min"], "ratio_max": peaks["ratio_max"]}
            results |= {"advantage_mean": sums["advantage"] / tokens}
            results |= {"advantage_min": -peaks["advantage_min"], "advantage_max": peaks["advantage_max"]}
        if tokens := sums["reference_tokens"]:
            results["reference_kl"] = sums["reference_kl"] / tokens
        if tokens := sums["engine_tokens"]:
            results |= {name: sums[name] / tokens for name in ("engine_error", "engine_kl")}
            results |= {name: peaks[name] for name in ("engine_error_max", "engine_weight_max")}
            results["engine_weight_mean"] = sums["engine_weight"] / tokens
            results["engine_ess"] = sums["engine_weight"] ** 2 / (tokens * sums["engine_weight_square"])
            results["engine_outside_share"] = sums["engine_outside"] / tokens
        if tokens := sums["stale_tokens"]:
            results["stale_share"] = tokens / sums["tokens"]
            results |= {"stale_kl": sums["stale_kl"] / tokens, "stale_outside_share": sums["stale_outside"] / tokens}
        return results


@torch.no_grad()
def diagnose(
    scores: TokenScores,
    losses: TokenLosses,
    advantages: Tensor,
    old_logprobs: Tensor,
    engine_logprobs: Tensor | None = None,
    outside: Tensor | None = None,
    stale: Tensor | None = None,
    reference_kl: Tensor | None = None,
) -> Diagnostics:
    """The diagnostics of a micro-batch's `n` tokens.

    Args:
        scores: The current policy's scores.
        losses: What the policy loss made of them.
        advantages: The advantage of each token's answer, `(n,)`.
        old_logprobs: Log-probabilities before the batch's first update, `(n,)`.
        engine_logprobs: Log-probabilities of the engine, `(n,)`.
        outside: Where the correction's weights are out of bounds, `(n,)` bool. None: nowhere.
        stale: Which tokens older weights sampled, `(n,)` bool. None: none.
        reference_kl: The unweighted divergence from the reference, `(n,)`.
    """
    ratio = losses.ratio
    values = {
        "tokens": torch.ones_like(ratio),
        "entropy": scores.entropies,
        "advantage": advantages,
        "clip_low": losses.clip_low,
        "clip_high": losses.clip_high,
        "dual_clip": losses.dual_clip,
        "approximate_kl": k3(old_logprobs, scores.logprobs),
    }
    peaks = {"ratio_max": ratio, "ratio_min": -ratio, "advantage_max": advantages, "advantage_min": -advantages}
    if reference_kl is not None:
        values |= {"reference_tokens": torch.ones_like(ratio), "reference_kl": reference_kl}
    if engine_logprobs is None:
        return _reduce(values, peaks)
    nowhere = torch.zeros_like(ratio, dtype=torch.bool)
    outside, stale = nowhere if outside is None else outside, nowhere if stale is None else stale
    stale_kl = k3(engine_logprobs, old_logprobs)
    values |= {"stale_tokens": stale, "stale_kl": stale_kl.where(stale, 0.0), "stale_outside": outside & stale}
    return _reduce(values, peaks) + mismatch(old_logprobs, engine_logprobs, outside, ~stale)


@torch.no_grad()
def mismatch(
    old_logprobs: Tensor, engine_logprobs: Tensor, outside: Tensor | None = None, counted: Tensor | None = None
) -> Diagnostics:
    """The diagnostics `engine_*` of tokens `(n,)` that engine and trainer scored with the same weights.

    `outside` `(n,)` bool tells where the correction's weights are out of bounds (None: nowhere), `counted` `(n,)` bool
    which tokens count (None: all).
    """
    weight, error = token_weights(old_logprobs, engine_logprobs), (old_logprobs - engine_logprobs).abs()
    values = {"engine_tokens": torch.ones_like(weight), "engine_error": error}
    values |= {"engine_kl": k3(engine_logprobs, old_logprobs)}
    values |= {"engine_weight": weight, "engine_weight_square": weight.double() ** 2}
    values |= {"engine_outside": torch.zeros_like(weight) if outside is None else outside}
    peaks = {"engine_error_max": error, "engine_weight_max": weight}
    if counted is not None:  # without an index by a mask, whose size the host would have to read
        values = {name: value.where(counted, 0) for name, value in values.items()}
        peaks = {name: value.where(counted, -torch.inf) for name, value in peaks.items()}
    return _reduce(values, peaks)


def _reduce(values: Mapping[str, Tensor], peaks: Mapping[str, Tensor]) -> Diagnostics:
    """The sums of `values` `(n,)` and the maxima of `peaks` `(n,)`; names that are absent count as no tokens."""
    empty = next(iter(values.values())).new_zeros(0)
    return Diagnostics(
        torch.stack([values.get(name, empty).sum(dtype=torch.float64) for name in ALL_SUMS]),
        torch.stack([_maximum(peaks.get(name, empty)) for name in PEAKS]),
    )


def _maximum(values: Tensor) -> Tensor:
    """The maximum of `values` `(n,)`, minus infinity for none."""
    return torch.cat([values.double(), values.new_full((1,), -torch.inf, dtype=torch.float64)]).max()
