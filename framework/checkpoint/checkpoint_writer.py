"""Writes checkpoints: the part of one rank, and on the first rank also what vouches for the whole.

A writer lives beside training (`writers.Synchronous`, `Asynchronous("thread")`) or in a process of its own (`daemon`).
"""

from __future__ import annotations

import copy
import pickle
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from torch import Tensor
from torch.distributed.checkpoint import FileSystemWriter
from torch.distributed.checkpoint.storage import WriteResult

from framework.checkpoint.history import Lineage, Tier, remove, superseded, unfinished
from framework.checkpoint.manifest import (
    MANIFEST,
    CheckpointError,
    Entry,
    commit,
    entry_of,
    problems,
)
from framework.checkpoint.plan import HeldTensors, Share
from framework.checkpoint.rank_group import RankGroup
from framework.run.files import sync, write_text
from framework.run.layout import COMMIT, checkpoint_name

TENSORS = "tensors"


@dataclass(frozen=True)
class SaveRequest:
    """A checkpoint to write: everything but the tensors, as it was at the step.

    It is written in the first of `tiers` and copied to the others. `state` and `rank_state` are JSON.
    """

    step: int
    attempt: int
    tiers: tuple[Tier, ...]
    state: str
    rank_state: str

    def folders(self) -> list[Path]:
        """Where it lies in each tier."""
        return [tier.folder / checkpoint_name(self.step, self.attempt) for tier in self.tiers]


class Writes(Protocol):
    """What a writer does, here or in another process. All raise `CheckpointError` when the disk refuses."""

    def clear(self, order: SaveRequest) -> None:
        """Make the empty folders (first rank, before all others write)."""
        ...

    def write(self, order: SaveRequest) -> bytes:
        """Write and hash this rank's part; returns a receipt for `commit`."""
        ...

    def commit(self, order: SaveRequest, receipts: Sequence[bytes]) -> None:
        """Vouch for what all ranks wrote in the first tier (first rank, after all others have written)."""
        ...

    def copy(self, order: SaveRequest) -> None:
        """Copy this rank's part to the other tiers."""
        ...

    def commit_copies(self, order: SaveRequest) -> None:
        """Vouch for the copies (first rank, after all others have copied)."""
        ...

    def superseded(self, order: SaveRequest) -> list[Path]:
        """What the tiers need no longer keep (first rank)."""
        ...

    def verify(self, order: SaveRequest) -> list[str]:
        """What is wrong with this rank's share of what was written, in any tier."""
        ...

    def delete(self, folders: Sequence[Path]) -> None:
        """Delete checkpoints (first rank)."""
        ...


def write_checkpoint(ranks: RankGroup, writer: Writes, order: SaveRequest) -> None:
    """Write, commit and copy what `order` says; then delete what is no longer kept, unless the new checkpoint reads
    otherwise than it was written (collective). Raises on every rank what went wrong on any.
    """
    step, attempt = ranks.on_rank0(lambda: (order.step, order.attempt))
    mine = replace(order, attempt=attempt)

    def write() -> bytes:
        if order.step != step:
            raise CheckpointError(f"saves step {order.step} while the first rank saves {step}; nothing is kept")
        return writer.write(mine)

    ranks.on_rank0(lambda: writer.clear(mine))
    receipts = ranks.gather(write)
    ranks.on_rank0(lambda: writer.commit(mine, receipts))
    if len(mine.tiers) > 1:
        ranks.gather(lambda: writer.copy(mine))
        ranks.on_rank0(lambda: writer.commit_copies(mine))
    old = ranks.on_rank0(lambda: writer.superseded(mine))
    if old:
        found = ranks.gather(lambda: writer.verify(mine))
        ranks.on_rank0(lambda: _delete(writer, mine, old, [problem for part in found for problem in part]))


def _delete(writer: Writes, order: SaveRequest, old: Sequence[Path], found: Sequence[str]) -> None:
    if found:
        listed = "\n  ".join(found)
        raise CheckpointError(f"{order.folders()[0]}: committed, but reads otherwise; nothing is deleted\n  {listed}")
    writer.delete(old)


class CheckpointWriter:
    """Writes `tensors`, this rank's `share` of them, as often as it is told to."""

    def __init__(self) -> None:
        self._share: Share | None = None
        self._tensors: Mapping[str, Tensor] = {}
        self._copy_ahead = 0
        self._written: list[str] = []

    def take(self, share: Share, tensors: Mapping[str, Tensor], copy_ahead: int = 0) -> None:
        """What to write from now on. From a GPU, up to `copy_ahead` bytes are fetched while others are written."""
        self._share, self._tensors, self._copy_ahead = share, tensors, copy_ahead

    def clear(self, order: SaveRequest) -> None:
        """Remove an unfinished save of the very same attempt."""
        for folder in order.folders():
            with _told(folder):
                remove(folder)
                folder.mkdir(parents=True)
                sync(folder.parent)

    def write(self, order: SaveRequest) -> bytes:
        """Tensors and `rank-N.json`. The receipt is pickled here, since the first rank would take seconds to unpickle
        those of a thousand ranks beside its training.
        """
        assert self._share is not None
        folder, share = order.folders()[0], self._share
        names = [f"rank-{share.rank}.json"]
        results: list[WriteResult] = []
        with _told(folder):
            (folder / TENSORS).mkdir(parents=True, exist_ok=True)
            if share.plan.items:
                planner = HeldTensors(self._tensors)
                results = self._writer(folder).write_data(share.plan, planner).wait()
                names += sorted({f"{TENSORS}/{result.storage_data.relative_path}" for result in results})
            for name in names[1:]:
                sync(folder / name)  # before 2.14, torch does so with its last bytes still to be written
            sync(folder / TENSORS)
            write_text(folder / names[0], order.rank_state)
            self._written = names
            return pickle.dumps((results, _entries(folder, names)))

    def commit(self, order: SaveRequest, receipts: Sequence[bytes]) -> None:
        """`.metadata` and `state.json`, then the manifest, then COMMIT."""
        assert self._share is not None
        assert self._share.metadata is not None
        folder = order.folders()[0]
        read = [pickle.loads(receipt) for receipt in receipts]  # noqa: S301  # this run's own scribes wrote them
        names = [f"{TENSORS}/.metadata", "state.json"]
        with _told(folder):
            self._writer(folder).finish(copy.copy(self._share.metadata), [results for results, _ in read])
            sync(folder / names[0])
            sync(folder / TENSORS)
            write_text(folder / names[1], order.state)
            entries = _entries(folder, names)
            for _, others in read:
                entries |= others
            commit(folder, entries)
        self._written += names

    def copy(self, order: SaveRequest) -> None:
        """File by file, each read back and compared."""
        source, *targets = order.folders()
        for target in targets:
            for name in self._written:
                with _told(target):
                    _copy(source / name, target / name)

    def commit_copies(self, order: SaveRequest) -> None:
        """Manifest, then COMMIT, as they are in the first tier."""
        source, *targets = order.folders()
        for target in targets:
            with _told(target):
                for name in (MANIFEST, COMMIT):
                    write_text(target / name, (source / name).read_text())
                sync(target.parent)

    def superseded(self, order: SaveRequest) -> list[Path]:
        """In every tier, by its own rule. What dead attempts left unfinished is deleted here and now."""
        lineage = Lineage(order.tiers[-1].folder)
        old = list[Path]()
        for tier, folder in zip(order.tiers, order.folders(), strict=True):
            with _told(tier.folder):
                self.delete(unfinished(tier, order.attempt))
                old += superseded(tier, lineage, folder)
        return old

    def verify(self, order: SaveRequest) -> list[str]:
        """Hashed anew, other files than the rank wrote."""
        assert self._share is not None
        rank, size = self._share.rank, self._share.size
        return [problem for folder in order.folders() for problem in problems(folder, rank, size)]

    def delete(self, folders: Sequence[Path]) -> None:
        """What cannot be deleted is logged."""
        for folder in folders:
            remove(folder)

    def _writer(self, folder: Path) -> FileSystemWriter:
        return FileSystemWriter(folder / TENSORS, per_thread_copy_ahead=self._copy_ahead)


def _entries(folder: Path, names: Sequence[str]) -> dict[str, Entry]:
    return {name: entry_of(folder / name) for name in names}


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with source.open("rb") as read, target.open("wb") as written:
        shutil.copyfileobj(read, written, 16 * 2**20)
    sync(target)
    sync(target.parent)
    if entry_of(source) != entry_of(target):
        raise CheckpointError(f"{target}: reads otherwise than {source}, which it was copied from")


@contextmanager
def _told(folder: Path) -> Iterator[None]:
    """Turn what the disk refuses into one `CheckpointError`; torch's own writer raises RuntimeError for some of it."""
    try:
        yield
    except CheckpointError:
        raise
    except (OSError, RuntimeError) as error:
        raise CheckpointError(
            f"{folder}: could not be written ({error}); free space, or give another run.folder"
        ) from error
