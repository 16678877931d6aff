"""Writes the files of checkpoints: one rank's part, and on the first rank also manifest and COMMIT.

A writer lives in the training process (`save_modes.Synchronous`, `Asynchronous("thread")`) or in its own (`daemon`).
"""

from __future__ import annotations

import copy
import pickle
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor
from torch.distributed.checkpoint import FileSystemWriter
from torch.distributed.checkpoint.storage import WriteResult

from framework.checkpoint.history import Lineage, remove, superseded, unfinished
from framework.checkpoint.manifest import (
    MANIFEST,
    SIGNATURE,
    CheckpointError,
    Entry,
    commit,
    entry_of,
    problems,
)
from framework.checkpoint.save import SaveRequest
from framework.checkpoint.save_plan import LocalTensorPlanner, RankPlan
from framework.run.files import sync, write_text
from framework.run.layout import COMMIT

TENSORS = "tensors"
"""Subfolder of a checkpoint that torch.distributed.checkpoint writes."""
COPY_BLOCK = 16 * 2**20
"""Bytes copied between tiers at a time."""


class CheckpointWriter:
    """Implements `save.Writer` in this process, for one rank."""

    def __init__(self) -> None:
        self._rank_plan: RankPlan | None = None
        self._tensors: Mapping[str, Tensor] = {}
        self._copy_ahead = 0
        self._written: list[str] = []

    def prepare(self, rank_plan: RankPlan, tensors: Mapping[str, Tensor], copy_ahead: int = 0) -> None:
        """Set what the following saves write: this rank's part, by `rank_plan`, of `tensors`.

        Up to `copy_ahead` bytes are fetched from a GPU while others are written.
        """
        self._rank_plan, self._tensors, self._copy_ahead = rank_plan, tensors, copy_ahead

    def clear(self, request: SaveRequest) -> None:
        """Create empty folders, in place of an unfinished save of the same attempt."""
        for folder in request.folders():
            with _as_checkpoint_error(folder):
                remove(folder)
                folder.mkdir(parents=True)
                sync(folder.parent)

    def write(self, request: SaveRequest) -> bytes:
        """Write tensors and `rank-N.json`.

        The receipt is pickled here: on the first rank, unpickling those of a thousand ranks would hold up its training
        for seconds.
        """
        assert self._rank_plan is not None
        folder, rank_plan = request.folders()[0], self._rank_plan
        names = [f"rank-{rank_plan.rank}.json"]
        results: list[WriteResult] = []
        with _as_checkpoint_error(folder):
            (folder / TENSORS).mkdir(parents=True, exist_ok=True)
            if rank_plan.plan.items:
                planner = LocalTensorPlanner(self._tensors)
                results = self._torch_writer(folder).write_data(rank_plan.plan, planner).wait()
                names += sorted({f"{TENSORS}/{result.storage_data.relative_path}" for result in results})
            for name in names[1:]:
                sync(folder / name)  # before 2.14, torch syncs with its last bytes still to be written
            sync(folder / TENSORS)
            write_text(folder / names[0], request.rank_state)
            self._written = names
            return pickle.dumps((results, _entries(folder, names)))

    def commit(self, request: SaveRequest, receipts: Sequence[bytes]) -> None:
        """Write `.metadata` and `state.json`, then the manifest, then COMMIT."""
        assert self._rank_plan is not None
        assert self._rank_plan.metadata is not None
        folder = request.folders()[0]
        parts = [pickle.loads(receipt) for receipt in receipts]  # noqa: S301  # this run's own writers wrote them
        names = [f"{TENSORS}/.metadata", "state.json"]
        with _as_checkpoint_error(folder):
            self._torch_writer(folder).finish(copy.copy(self._rank_plan.metadata), [results for results, _ in parts])
            sync(folder / names[0])
            sync(folder / TENSORS)
            write_text(folder / names[1], request.state)
            entries = _entries(folder, names)
            for _, rank_entries in parts:
                entries |= rank_entries
            commit(folder, entries)
        self._written += names

    def copy(self, request: SaveRequest) -> None:
        """Copy file by file; each copy is read back and compared."""
        source, *targets = request.folders()
        for target in targets:
            for name in self._written:
                with _as_checkpoint_error(target):
                    _copy(source / name, target / name)

    def commit_copies(self, request: SaveRequest) -> None:
        """Write manifest and signature, then COMMIT, as they are in the first tier."""
        source, *targets = request.folders()
        for target in targets:
            with _as_checkpoint_error(target):
                for name in (MANIFEST, SIGNATURE, COMMIT):
                    if (source / name).is_file():
                        write_text(target / name, (source / name).read_text())
                sync(target.parent)

    def superseded(self, request: SaveRequest) -> list[Path]:
        """Checkpoints that a tier's retention no longer keeps. Deletes unfinished saves of dead attempts at once."""
        lineage = Lineage(request.tiers[-1].folder)
        folders = list[Path]()
        for tier, folder in zip(request.tiers, request.folders(), strict=True):
            with _as_checkpoint_error(tier.folder):
                self.delete(unfinished(tier, request.attempt))
                folders += superseded(tier, lineage, folder)
        return folders

    def verify(self, request: SaveRequest) -> list[str]:
        """Hash this rank's share of the files again; the share is not the files that the rank wrote."""
        assert self._rank_plan is not None
        rank, size = self._rank_plan.rank, self._rank_plan.size
        return [fault for folder in request.folders() for fault in problems(folder, rank, size)]

    def delete(self, folders: Sequence[Path]) -> None:
        """Delete checkpoints; a failure is logged."""
        for folder in folders:
            remove(folder)

    def _torch_writer(self, folder: Path) -> FileSystemWriter:
        return FileSystemWriter(folder / TENSORS, per_thread_copy_ahead=self._copy_ahead)


def _entries(folder: Path, names: Sequence[str]) -> dict[str, Entry]:
    return {name: entry_of(folder / name) for name in names}


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with source.open("rb") as read, target.open("wb") as written:
        shutil.copyfileobj(read, written, COPY_BLOCK)
    sync(target)
    sync(target.parent)
    if entry_of(source) != entry_of(target):
        raise CheckpointError(f"{target}: reads back differently from {source}, which it was copied from")


@contextmanager
def _as_checkpoint_error(folder: Path) -> Iterator[None]:
    """Raise a failure to write as `CheckpointError`. Some of torch's own writer's are RuntimeErrors."""
    try:
        yield
    except CheckpointError:
        raise
    except (OSError, RuntimeError) as error:
        raise CheckpointError(
            f"{folder}: could not be written ({error}); free space, or give another run.folder"
        ) from error
