"""Whether a run that much happened to is the run that nothing happened to."""

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
    """What differs between the ends of two runs: weights and optimizer state, bit for bit; samples by step; samples
    that were repeated or lost.
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
        for found in tally(stages[stage]):
            if found.repeated or found.lost:
                yield f"stream {found.stream}: {found.repeated} samples repeated, {found.lost} lost"


def tensors(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint, whole. Raises `ValueError` for one that its manifest does not vouch for."""
    if found := problems(checkpoint.folder):
        raise ValueError("; ".join(found))
    reader = dcp.FileSystemReader(checkpoint.folder / TENSORS)
    listed = reader.read_metadata().state_dict_metadata
    whole = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in listed.items()
        if isinstance(entry, TensorStorageMetadata)
    }
    dcp.load(whole, storage_reader=reader, no_dist=True)
    return whole
