"""Activation checkpointing (Chen et al. 2016, arXiv 1604.06174): what the backward pass computes again instead of
keeping it.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from torch.utils.checkpoint import (
    CheckpointPolicy,
    SelectiveCheckpointContext,
    checkpoint,
    create_selective_checkpoint_contexts,
)

OPERATORS = ("attention", "linear")
"""Kinds of operators whose results may be kept: the two that cost most to compute again."""


@dataclass(frozen=True)
class Recompute:
    """Computes every `every`-th block again in the backward pass, from the first on (None: no block).

    `kept` are kinds of operators, `attention` and `linear`, of whose results every n-th of a block is kept all the
    same: {attention: 1, linear: 2} keeps all that attention gave and half of what linear layers did (selective
    recomputation: Korthikanti et al. 2022, arXiv 2205.05198, section 5).
    """

    every: int | None = 1
    kept: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.every is not None and self.every < 1:
            raise ValueError(f"parallel.recompute.every: {self.every}; give a number from 1 on, or null for no block")
        for kind, every in self.kept.items():
            if kind not in OPERATORS:
                raise ValueError(f"parallel.recompute.kept.{kind}: no such operators; give {' or '.join(OPERATORS)}")
            if every < 1:
                raise ValueError(f"parallel.recompute.kept.{kind}: {every}; give a number from 1 on, or leave it out")

    def apply(self, blocks: Sequence[nn.Module]) -> None:
        """Wrap the forward of those `blocks` that are computed again, in place: names stay what they were."""
        if self.every is None:
            return
        # A wrapper module, as torch.distributed has one, would change the names of what is inside.
        options = {"context_fn": functools.partial(_contexts, self.kept)} if self.kept else {}
        for block in blocks[:: self.every]:
            block.forward = _again(block.forward, options)

    def shares(self) -> dict[str, float]:
        """Which share of the blocks' FLOPs is done again, by kind of operator, where linear layers are of one size."""
        of_blocks = 0.0 if self.every is None else 1.0 / self.every
        return {kind: of_blocks * (1.0 - 1.0 / self.kept[kind] if kind in self.kept else 1.0) for kind in OPERATORS}


def _again(forward: Callable[..., Any], options: dict[str, Any]) -> Callable[..., Any]:
    # A function and no partial, of which torch.compile would compile nothing, and say nothing.
    def recomputed(*args: Any, **kwargs: Any) -> Any:
        return checkpoint(forward, *args, use_reentrant=False, **options, **kwargs)

    return recomputed


def _contexts(kept: Mapping[str, int]) -> Any:
    """Of one block in one step. A function, as torch.compile takes no method here."""
    return create_selective_checkpoint_contexts(_Policy(kept))


class _Policy:
    """Decides, operator by operator of one block, in the order in which they run, the same in both passes."""

    def __init__(self, kept: Mapping[str, int]) -> None:
        self.kept = kept
        self.seen: Counter[tuple[bool, str]] = Counter()

    def __call__(
        self, context: SelectiveCheckpointContext, operator: Any, *args: Any, **kwargs: Any
    ) -> CheckpointPolicy:
        kind = _kind(operator)
        if kind not in self.kept:
            return CheckpointPolicy.PREFER_RECOMPUTE
        self.seen[context.is_recompute, kind] += 1
        # The last of n, so that the first, from the block's input, is computed again: with it those after it are.
        keep = self.seen[context.is_recompute, kind] % self.kept[kind] == 0
        return CheckpointPolicy.MUST_SAVE if keep else CheckpointPolicy.PREFER_RECOMPUTE


def _kind(operator: Any) -> str:
    """Which of `OPERATORS`, or nothing. Kernels of other packages are known by their names alone."""
    name = operator.name()
    if "attention" in name or "flash_attn" in name:
        return "attention"
    return "linear" if name in ("aten::mm", "aten::addmm") else ""
