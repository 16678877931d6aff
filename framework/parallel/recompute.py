"""Activation checkpointing (Chen et al. 2016, arXiv 1604.06174): the backward pass recomputes activations instead of
keeping them.
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

from framework.recipe.component import component
from framework.recipe.ranges import PositiveCount

OPERATORS = ("attention", "linear")
"""Kinds of operators whose results may be kept: the two that cost most to recompute."""


@component
@dataclass(frozen=True)
class Recompute:
    """Recomputes the activations of blocks in the backward pass."""

    every: PositiveCount | None = 1
    """Recomputes every n-th block, from the first on; 1 recomputes all, None none."""
    kept: Mapping[str, PositiveCount] = field(default_factory=dict)
    """By kind of operator (`attention`, `linear`): keeps every n-th result of a recomputed block (selective
    recomputation: Korthikanti et al. 2022, arXiv 2205.05198, section 5). {attention: 1, linear: 2} keeps the outputs of
    all attention and of half of the linear layers."""

    def __post_init__(self) -> None:
        if self.every is not None and self.every < 1:
            raise ValueError(f"parallel.recompute.every: {self.every}; give a number from 1 on, or null for no block")
        for kind, every in self.kept.items():
            if kind not in OPERATORS:
                raise ValueError(f"parallel.recompute.kept.{kind}: no such operators; give {' or '.join(OPERATORS)}")
            if every < 1:
                raise ValueError(f"parallel.recompute.kept.{kind}: {every}; give a number from 1 on, or leave it out")

    def apply(self, blocks: Sequence[nn.Module]) -> None:
        """Wrap the forward of the `blocks` that are recomputed, in place. Parameter names stay."""
        if self.every is None:
            return
        # A wrapper module, such as torch.distributed's, would change parameter names.
        # As text: compiled for any length, a number would be a symbol, which has no place in a context.
        kept = {kind: str(every) for kind, every in self.kept.items()}
        options = {"context_fn": functools.partial(_contexts, kept)} if kept else {}
        for block in blocks[:: self.every]:
            block.forward = _again(block.forward, options)

    def shares(self) -> dict[str, float]:
        """Share of the blocks' FLOPs that is recomputed, by kind of operator, for linear layers of equal size."""
        of_blocks = 0.0 if self.every is None else 1.0 / self.every
        return {kind: of_blocks * (1.0 - 1.0 / self.kept[kind] if kind in self.kept else 1.0) for kind in OPERATORS}


def _again(forward: Callable[..., Any], options: dict[str, Any]) -> Callable[..., Any]:
    # A function: of a partial, torch.compile silently compiles nothing.
    def recomputed(*args: Any, **kwargs: Any) -> Any:
        return checkpoint(forward, *args, use_reentrant=False, **options, **kwargs)

    return recomputed


def _contexts(kept: Mapping[str, str]) -> Any:
    """Contexts of one block in one step. A function, since torch.compile accepts no method here."""
    return create_selective_checkpoint_contexts(_Policy({kind: int(every) for kind, every in kept.items()}))


class _Policy:
    """Decides for each operator of a block, in execution order, whether to keep its result; equally in both passes."""

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
        # The last of n is kept, so that the first, which follows the block's input, is recomputed.
        keep = self.seen[context.is_recompute, kind] % self.kept[kind] == 0
        return CheckpointPolicy.MUST_SAVE if keep else CheckpointPolicy.PREFER_RECOMPUTE


def _kind(operator: Any) -> str:
    """One of `OPERATORS`, or an empty string. Kernels of other packages are recognised by name alone."""
    name = operator.name()
    if "attention" in name or "flash_attn" in name or "varlen_attn" in name:
        return "attention"
    return "linear" if name in ("aten::mm", "aten::addmm") else ""
