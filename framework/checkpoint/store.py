"""The checkpoints of a run: save, choose, load (contract 3).

checkpoints/step-00000100.attempt-2/
    tensors/        torch.distributed.checkpoint, tensors alone
    state.json      step, attempt, stage, optimizer settings, schedule, metrics: the same on every rank
    rank-0.json ... random generators, one per rank
    manifest.json   size and hash of every file above
    SIGNATURE       the manifest's signature, where the environment holds CHECKPOINT_KEY
    COMMIT          the manifest's hash, written last
checkpoints/attempts/attempt-2.json    what the attempt resumed from, see `history.Lineage`
"""

from __future__ import annotations

import json
import logging
import socket
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import torch.distributed as dist
from torch import nn
from torch.optim import Optimizer

from framework.checkpoint.checkpoint_writer import TENSORS
from framework.checkpoint.history import Checkpoint, Lineage, Outcome, Retention, Tier, committed
from framework.checkpoint.manifest import CheckpointError, problems
from framework.checkpoint.rank_group import RankGroup
from framework.checkpoint.retention import KeepLast
from framework.checkpoint.save import SaveRequest
from framework.checkpoint.save_modes import GRACE_S, SaveMode, Synchronous
from framework.checkpoint.tensors import (
    IncompatibleCheckpointError,
    load_tensors,
    load_weights,
    named_tensors,
    unchanged_by_forward,
)
from framework.run.folder import is_first_rank

log = logging.getLogger(__name__)


class CheckpointStore:
    """The checkpoints under `folder`.

    Args:
        folder: Where checkpoints are committed.
        retention: Chooses those to keep (default: the newest three).
        save_mode: Writes them (default: synchronously).
        local_folder: A folder on the node's own disk. Checkpoints are committed there first, then copied to `folder`
            and committed again; both folders are searched when one is chosen. It needs all ranks on one node.
        tries: Attempts that may fail to load a checkpoint before it is passed over.
    """

    def __init__(
        self,
        folder: Path,
        retention: Retention | None = None,
        save_mode: SaveMode | None = None,
        local_folder: Path | None = None,
        tries: int = 3,
    ) -> None:
        self.folder = folder
        self.save_mode = save_mode or Synchronous()
        self.tries = tries
        self._tiers: tuple[Tier, ...] = (Tier(folder, retention or KeepLast()),)
        if local_folder is not None:
            self._tiers = (Tier(local_folder, KeepLast(1)), *self._tiers)
        self._lineage = Lineage(folder)
        self._resuming: tuple[int, Checkpoint] | None = None
        self._group: RankGroup | None = None

    def __enter__(self) -> CheckpointStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def start(self) -> None:
        """Start what takes seconds, so that the first save need not wait (collective).

        Raises `CheckpointError` when ranks on several nodes share a `local_folder`, which would not hold whole
        checkpoints.
        """
        if len(self._tiers) > 1:
            hosts = self._ranks().gather(socket.gethostname)
            self._ranks().on_rank0(lambda: _check_one_node(hosts))
        self.save_mode.start()

    def save(
        self,
        step: int,
        attempt: int,
        model: nn.Module,
        optimizer: Optimizer,
        state: Mapping[str, Any],
        rank_state: Mapping[str, Any],
    ) -> None:
        """Save everything as it is now (collective). `state` and `rank_state` must be JSON, and are read at once.

        Raises `CheckpointError`: for this save in synchronous mode, else for the one before. The save has become a
        checkpoint when `poll` or `finish` have not raised and COMMIT exists.
        """
        tensors, settings = named_tensors(model, optimizer)
        content = {"step": step, "attempt": attempt, "optimizer_settings": settings, **state}
        request = SaveRequest(step, attempt, self._tiers, json.dumps(content, indent=1), json.dumps(rank_state))
        of_optimizer = {name for name in tensors if name.startswith("optimizer/")}
        changed_by_forward = set(tensors) - unchanged_by_forward(model) - of_optimizer
        self.save_mode.save(self._ranks(), request, tensors, changed_by_forward, optimizer)

    def poll(self) -> None:
        """Raise `CheckpointError` when a save has failed meanwhile; to be called after every step."""
        self.save_mode.poll()

    def finish(self, within_s: float | None = None) -> bool:
        """Wait until the last save is committed; raises `CheckpointError` when it failed.

        Returns False when the save was lost with the process that wrote it, so that another try is worth it.
        """
        return self.save_mode.finish(within_s)

    def close(self) -> None:
        """Release the resources of `save_mode`. A save in flight is lost: `finish` first."""
        self.save_mode.close()

    def committed(self) -> list[Checkpoint]:
        """Checkpoints of the run's history that have a COMMIT, in all tiers, oldest first.

        Of copies of one checkpoint, that of the first tier, on the node's own disk, comes last.
        """
        copies = [
            (checkpoint, -number) for number, tier in enumerate(self._tiers) for checkpoint in committed(tier.folder)
        ]
        copies.sort(key=lambda pair: (pair[0].step, pair[0].attempt, pair[1]))
        return self._lineage.alive(checkpoint for checkpoint, _ in copies)

    def last(self) -> Checkpoint:
        """The checkpoint that was committed last, not verified, without which there must be none (collective)."""
        return self._ranks().on_rank0(lambda: self.committed()[-1])

    def newest(self, attempt: int | None = None, before: int | None = None) -> Checkpoint | None:
        """The newest checkpoint that verifies, of a step earlier than `before` (None: of any step).

        None when there is no checkpoint at all. Those passed over are logged. Failed loads by attempts earlier than
        `attempt` (None: by all) count as tries. Collective where torch.distributed runs: each rank verifies a part.
        Raises `CheckpointError` when there are checkpoints and none verifies: a fresh start would hide the loss.
        """
        ranks = self._ranks()
        faults: list[str] = []
        for checkpoint in reversed(ranks.on_rank0(self.committed)):
            if before is not None and checkpoint.step >= before:
                continue
            own_faults = self._faults(ranks, checkpoint, attempt)
            if not own_faults:
                return checkpoint
            log.warning("checkpoint passed over: %s", "; ".join(own_faults))
            faults += own_faults
        if faults:
            lines = "\n  ".join(faults)
            raise CheckpointError(
                f"{self.folder}: no checkpoint verifies; restore one, or give a new run.name to start over\n  {lines}"
            )
        return None

    def verified(self, folder: Path) -> Checkpoint:
        """The checkpoint in `folder`, which is one of this store's (collective, like `newest`).

        Raises `CheckpointError` when it does not verify.
        """
        ranks = self._ranks()
        parts = ranks.gather(lambda: problems(folder, ranks.rank, ranks.size))
        if faults := ranks.on_rank0(lambda: [fault for part in parts for fault in part]):
            raise CheckpointError("\n  ".join([f"{folder}: does not verify; give another checkpoint", *faults]))
        return next(checkpoint for checkpoint in committed(folder.parent) if checkpoint.folder == folder)

    def resume(self, attempt: int) -> Checkpoint | None:
        """The checkpoint that `attempt` resumes from: `newest`, recorded so that no checkpoint committed later replaces
        it in the run's history. Raises like `newest`.
        """
        chosen = self.newest(attempt)
        if self._is_rank0():
            self._lineage.record(attempt, chosen, "chosen")
        self._resuming = (attempt, chosen) if chosen is not None else None
        return chosen

    def load(self, checkpoint: Checkpoint, model: nn.Module, optimizer: Optimizer) -> None:
        """Load model and optimizer, resharded to their current mesh (collective).

        `checkpoint` must come from `newest` or `resume`. Raises `CheckpointError`; it names tensors and shapes when the
        model does not match.
        """
        settings = checkpoint.state()["optimizer_settings"]
        with _RecordedLoad(self, checkpoint):
            load_tensors(checkpoint.folder / TENSORS, model, optimizer, settings, self._ranks().group)

    def load_weights(self, checkpoint: Checkpoint, model: nn.Module, new: Collection[str] = ()) -> None:
        """Load the model's weights alone (collective); raises like `load`.

        Parameters named in `new` stay as they are when the checkpoint has none of them.
        """
        with _RecordedLoad(self, checkpoint):
            load_weights(checkpoint.folder / TENSORS, model, self._ranks().group, new)

    def _faults(self, ranks: RankGroup, checkpoint: Checkpoint, attempt: int | None) -> list[str]:
        failures = ranks.on_rank0(lambda: self._lineage.failures(checkpoint, attempt))
        if failures >= self.tries:
            return [f"{checkpoint.folder}: {failures} attempts failed while loading it"]
        parts = ranks.gather(lambda: problems(checkpoint.folder, ranks.rank, ranks.size))
        return ranks.on_rank0(lambda: [fault for part in parts for fault in part])

    def _is_rank0(self) -> bool:
        return self._ranks().is_rank0 if dist.is_initialized() else is_first_rank()

    def _ranks(self) -> RankGroup:
        running = dist.is_available() and dist.is_initialized()
        if self._group is None or (self._group.group is None and running):
            self._group = RankGroup(self.save_mode.timeout_s + 2 * GRACE_S)
        return self._group


def _check_one_node(hosts: Sequence[str]) -> None:
    if len(set(hosts)) > 1:
        raise CheckpointError(f"checkpoint.local_folder: the ranks are on {len(set(hosts))} nodes; leave it out")


class _RecordedLoad:
    """Records how loading the checkpoint that an attempt resumes from ends; a crash leaves the record `began`."""

    def __init__(self, store: CheckpointStore, checkpoint: Checkpoint) -> None:
        self._store = store
        self._checkpoint = checkpoint

    def __enter__(self) -> None:
        self._record("began")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None or isinstance(error, IncompatibleCheckpointError):
            self._record("loaded" if error is None else "refused")

    def _record(self, outcome: Outcome) -> None:
        attempt, chosen = self._store._resuming or (0, None)
        if chosen == self._checkpoint and self._store._is_rank0():
            self._store._lineage.record(attempt, chosen, outcome)
