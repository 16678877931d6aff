"""One save, as all ranks of a run perform it together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from framework.checkpoint.history import Tier
from framework.checkpoint.manifest import CheckpointError
from framework.checkpoint.rank_group import RankGroup
from framework.run.layout import checkpoint_name


@dataclass(frozen=True)
class SaveRequest:
    """A checkpoint to write: everything but the tensors, captured at the step."""

    step: int
    """Optimizer steps taken."""
    attempt: int
    """Attempt of the run that saves."""
    tiers: tuple[Tier, ...]
    """Folders to write to: the checkpoint is committed in the first and copied to the others."""
    state: str
    """What is the same on every rank, as JSON."""
    rank_state: str
    """What belongs to this rank alone, as JSON."""

    def folders(self) -> list[Path]:
        """The checkpoint's folder in each tier."""
        return [tier.folder / checkpoint_name(self.step, self.attempt) for tier in self.tiers]


class Writer(Protocol):
    """Writes one rank's part of a checkpoint, in this process or in another.

    Every method raises `CheckpointError` when the disk refuses.
    """

    def clear(self, request: SaveRequest) -> None:
        """Create empty folders (first rank, before any rank writes)."""
        ...

    def write(self, request: SaveRequest) -> bytes:
        """Write and hash this rank's part; returns a receipt for `commit`."""
        ...

    def commit(self, request: SaveRequest, receipts: Sequence[bytes]) -> None:
        """Commit what all ranks wrote in the first tier (first rank, after all ranks have written)."""
        ...

    def copy(self, request: SaveRequest) -> None:
        """Copy this rank's part to the other tiers."""
        ...

    def commit_copies(self, request: SaveRequest) -> None:
        """Commit the copies (first rank, after all ranks have copied)."""
        ...

    def superseded(self, request: SaveRequest) -> list[Path]:
        """Checkpoints that the tiers no longer need (first rank)."""
        ...

    def verify(self, request: SaveRequest) -> list[str]:
        """Faults in this rank's share of the files written, in any tier."""
        ...

    def delete(self, folders: Sequence[Path]) -> None:
        """Delete checkpoints (first rank)."""
        ...


def write_checkpoint(ranks: RankGroup, writer: Writer, request: SaveRequest) -> None:
    """Write, commit and copy the checkpoint of `request` (collective).

    Superseded checkpoints are deleted last, and only once the new one has been read back without a fault. A failure on
    one rank is raised on all.
    """
    step, attempt = ranks.on_rank0(lambda: (request.step, request.attempt))
    agreed = replace(request, attempt=attempt)

    def write() -> bytes:
        if request.step != step:
            raise CheckpointError(f"saves step {request.step} while the first rank saves {step}; nothing is kept")
        return writer.write(agreed)

    ranks.on_rank0(lambda: writer.clear(agreed))
    receipts = ranks.gather(write)
    ranks.on_rank0(lambda: writer.commit(agreed, receipts))
    if len(agreed.tiers) > 1:
        ranks.gather(lambda: writer.copy(agreed))
        ranks.on_rank0(lambda: writer.commit_copies(agreed))
    superseded = ranks.on_rank0(lambda: writer.superseded(agreed))
    if superseded:
        faults = ranks.gather(lambda: writer.verify(agreed))
        ranks.on_rank0(lambda: _delete(writer, agreed, superseded, [fault for part in faults for fault in part]))


def _delete(writer: Writer, request: SaveRequest, superseded: Sequence[Path], faults: Sequence[str]) -> None:
    if faults:
        lines = "\n  ".join(faults)
        raise CheckpointError(
            f"{request.folders()[0]}: committed, but reads back differently; nothing is deleted\n  {lines}"
        )
    writer.delete(superseded)
