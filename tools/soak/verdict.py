"""Compares the end of a run that faults struck with the end of an undisturbed one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from framework.checkpoint.checkpoint_writer import TENSORS
from framework.checkpoint.history import Checkpoint, committed
from framework.checkpoint.manifest import problems
from framework.data.stream.ledger import first_difference, read_attempts, tally
from framework.run.layout import LEDGER


def differences(run: Path, undisturbed: Path) -> Iterator[str]:
    """Yield what differs between the ends of two runs: weights and optimizer state, bit for bit; samples by step;
    samples that were repeated or lost.
    """
    newest = [committed(folder / "checkpoints")[-1] for folder in (run, undisturbed)]
    if newest[0].step != newest[1].step:
        yield f"it ends at step {newest[0].step}, undisturbed at {newest[1].step}"
        return
    ours, theirs = (tensors(checkpoint) for checkpoint in newest)
    if ours.keys() != theirs.keys():
        yield f"tensors that only one has: {sorted(ours.keys() ^ theirs.keys())}"
    unequal = [name for name in ours.keys() & theirs.keys() if not torch.equal(ours[name], theirs[name])]
    if unequal:
        yield f"{len(unequal)} of {len(ours)} tensors differ: {sorted(unequal)[:5]}"
    stages, expected = (read_attempts(folder / LEDGER) for folder in (run, undisturbed))
    for stage in expected:
        if (step := first_difference(stages[stage], expected[stage])) is not None:
            yield f"stage {stage}: other samples at step {step}"
        for count in tally(stages[stage]):
            if count.repeated or count.lost:
                yield f"stream {count.stream}: {count.repeated} samples repeated, {count.lost} lost"


def tensors(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    """Return all tensors of a checkpoint, unsharded. Raises `ValueError` where files differ from its manifest."""
    if faults := problems(checkpoint.folder):
        raise ValueError("; ".join(faults))
    reader = dcp.FileSystemReader(checkpoint.folder / TENSORS)
    entries = reader.read_metadata().state_dict_metadata
    unsharded = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in entries.items()
        if isinstance(entry, TensorStorageMetadata)
    }
    dcp.load(unsharded, storage_reader=reader, no_dist=True)
    return unsharded
