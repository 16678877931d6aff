"""What the host knows of a supervised step before it is moved: layouts, learned positions and counts.

The step itself then reads nothing from the device that depends on its data, so that the host runs ahead of a GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from framework.data.render.collate import without_labels
from framework.model.language_action import LanguageActionModel
from framework.objective.supervised import next_token_positions, supervised_tokens
from framework.scene.batch import MicroBatch
from framework.training.to_device import to_device


@dataclass(frozen=True, slots=True)
class PreparedMicroBatch:
    """A micro-batch, and what it learns."""

    batch: MicroBatch
    """With its layout, where the model computes rows without padding."""
    sources: Tensor
    """`(n,)` int64: flat indices of the positions whose next token is learned."""
    targets: Tensor
    """`(n,)` int64: those tokens."""


@dataclass(frozen=True, slots=True)
class PreparedStep:
    """The micro-batches of a step."""

    micro_batches: Sequence[PreparedMicroBatch]
    """Those that count, then those that only fill up this rank's number of them."""
    counted: int
    """The number of those that count."""
    counts: tuple[int, int, int]
    """Numbers of supervised tokens, tokens and samples."""

    def to(self, device: torch.device) -> PreparedStep:
        """The step with its tensors on `device` (see `to_device`)."""
        moved = [
            PreparedMicroBatch(
                to_device(micro.batch, device), to_device(micro.sources, device), to_device(micro.targets, device)
            )
            for micro in self.micro_batches
        ]
        return replace(self, micro_batches=moved)


def prepare_step(model: LanguageActionModel, batch: Sequence[MicroBatch], missing: int) -> PreparedStep:
    """Prepare the micro-batches of a step, with `missing` more, which learn nothing, to fill up this rank's number."""
    idle = [without_labels(min(batch, key=lambda micro: micro["input_ids"].numel()))] * missing if missing else []
    supervised = sum(supervised_tokens(micro["labels"]) for micro in batch)
    tokens = sum(int(micro["attention_mask"].sum()) for micro in batch)
    samples = sum(len(micro["scenes"]) for micro in batch)
    prepared = [_prepare(model, micro) for micro in (*batch, *idle)]
    return PreparedStep(prepared, len(batch), (supervised, tokens, samples))


def _prepare(model: LanguageActionModel, micro: MicroBatch) -> PreparedMicroBatch:
    positions, targets = next_token_positions(micro["labels"])
    return PreparedMicroBatch(model.lay_out(micro), positions.flatten().nonzero()[:, 0], targets)
