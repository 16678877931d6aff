"""The weights of another run's newest checkpoint."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from torch import nn

from framework.checkpoint.store import Checkpoint, CheckpointStore
from framework.checkpoint.tensors import IncompatibleCheckpointError
from framework.model.quantized_base import quantized_layers, restored
from framework.run.layout import CHECKPOINTS


def newest_checkpoint(run: Path) -> Checkpoint:
    """The newest checkpoint in the run folder `run` that verifies (collective).

    Raises `FileNotFoundError` if the run has no committed checkpoint, `CheckpointError` if none verifies.
    """
    checkpoint = CheckpointStore(run / CHECKPOINTS).newest()
    if checkpoint is None:
        raise FileNotFoundError(
            f"{run / CHECKPOINTS}: no committed checkpoint; train that run first, or give another run's folder"
        )
    return checkpoint


def load_newest(run: Path, model: nn.Module, new: Collection[str] = ()) -> Checkpoint:
    """Load the weights of `newest_checkpoint(run)` (collective). Parameters named in `new` keep their values if the
    checkpoint lacks them. Weights that `model` quantises may be plain ones there: they are rounded.
    """
    checkpoint, store = newest_checkpoint(run), CheckpointStore(run / CHECKPOINTS)
    try:
        store.load_weights(checkpoint, model, new)
    except IncompatibleCheckpointError:
        if not quantized_layers(model):
            raise
        with restored(model):
            store.load_weights(checkpoint, model, new)
    return checkpoint
