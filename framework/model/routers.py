"""What the routers of a forward pass chose, for the loss that keeps experts evenly busy."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from framework.scene.batch import MicroBatch


@dataclass
class RouterRecord:
    """Filled by the forward pass that it is given to. It stays empty for a model without experts."""

    logits: tuple[Tensor, ...] = ()
    """Each layer's router logits, `(tokens, experts)`."""
    samples: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    """The sample of each token, `(tokens,)` int64, from 0; -1 for padding."""


def sample_numbers(batch: MicroBatch) -> Tensor:
    """The sample of each position, `(b, t)` int64, counted over the micro-batch; -1 for padding."""
    if "segments" not in batch:
        rows = torch.arange(len(batch["input_ids"]), device=batch["input_ids"].device)[:, None]
        return torch.where(batch["attention_mask"].bool(), rows, -1)
    segments = batch["segments"]
    before = segments.amax(dim=1).cumsum(dim=0) - segments.amax(dim=1)
    return torch.where(segments > 0, segments - 1 + before[:, None], -1)
