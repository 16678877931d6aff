"""Moves micro-batches to a device."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from framework.scene.batch import MicroBatch


def to_device(micro: MicroBatch, device: torch.device) -> MicroBatch:
    """A copy of `micro` with all tensors on `device`; scenes, tasks and ids are shared with it."""

    def move(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.to(device, non_blocking=True)
        if isinstance(value, dict):
            return {name: move(inner) for name, inner in value.items()}
        return value

    return cast(MicroBatch, move(dict(micro)))
