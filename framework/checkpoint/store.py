"""The checkpoints of a run: save, choose, load (contract 3).

checkpoints/step-00000100.attempt-2/
    tensors/        torch.distributed.checkpoint, tensors alone
    state.json      step, attempt, stage, optimizer settings, schedule, metrics: the same on every rank
    rank-0.json ... random generators, one per rank
    manifest.json   size and hash of every file above
    COMMIT          the manifest's hash, written last
checkpoints/attempts/attempt-2.json    what the attempt resumed from, see `listing.Lineage`
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

from framework.checkpoint.checkpoint_writer import TENSORS, SaveRequest
from framework.checkpoint.history import Checkpoint, Lineage, Outcome, Retention, Tier, committed
from framework.checkpoint.manifest import CheckpointError, problems
from framework.checkpoint.rank_group import RankGroup
from framework.checkpoint.retention import KeepLast
from framework.checkpoint.save_modes import GRACE_S, Synchronous, Writer
from framework.checkpoint.tensors import Unfit, load_tensors, load_weights, moved_by_optimizer_only, named_tensors
from framework.run.folder import is_first_rank

log = logging.getLogger(__name__)


class CheckpointStore:
    """Checkpoints under `folder`, kept by `retention`, written by `writer` (default: synchronously).

    With `local_folder`, a folder on the node's own disk, they are committed there first, then copied to `folder` and
    committed again; both are looked at when one is chosen. That needs all ranks on one node. A checkpoint that `tries`
    attempts began to load without success is passed over.
    """

    def __init__(
        self,
        folder: Path,
        retention: Retention | None = None,
        writer: Writer | None = None,
        local_folder: Path | None = None,
        tries: int = 3,
    ) -> None:
        self.folder = folder
        self.writer = writer or Synchronous()
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
        """Begin what takes its time, so that the first save need not wait (collective). Raises `CheckpointError` when
        the nearer folder would not hold whole checkpoints.
        """
        if len(self._tiers) > 1:
            hosts = self._ranks().gather(socket.gethostname)
            self._ranks().on_rank0(lambda: _same(hosts))
        self.writer.start()

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

        Raises `CheckpointError`: of this save with a synchronous writer, else of the one before. That is a checkpoint
        when `poll` or `finish` have not raised, and COMMIT is there.
        """
        tensors, settings = named_tensors(model, optimizer)
        facts = {"step": step, "attempt": attempt, "optimizer_settings": settings, **state}
        order = SaveRequest(step, attempt, self._tiers, json.dumps(facts, indent=1), json.dumps(rank_state))
        at_once = (
            set(tensors) - moved_by_optimizer_only(model) - {name for name in tensors if name[:10] == "optimizer/"}
        )
        self.writer.save(self._ranks(), order, tensors, at_once, optimizer)

    def poll(self) -> None:
        """Call at the end of every step; raises `CheckpointError` when a save has failed meanwhile."""
        self.writer.poll()

    def finish(self, within_s: float | None = None) -> bool:
        """Wait until the last save is committed. False when it was lost with a process that wrote it, so that another
        try is worth it; raises `CheckpointError` when it failed otherwise.
        """
        return self.writer.finish(within_s)

    def close(self) -> None:
        """Give back what `writer` holds. A save in flight is lost: `finish` first."""
        self.writer.close()

    def committed(self) -> list[Checkpoint]:
        """Checkpoints of the run's history that have a COMMIT, oldest first, in all tiers; the nearest is the last of
        equals.
        """
        found = [(checkpoint, -near) for near, tier in enumerate(self._tiers) for checkpoint in committed(tier.folder)]
        found.sort(key=lambda pair: (pair[0].step, pair[0].attempt, pair[1]))
        return [checkpoint for checkpoint, _ in found if not self._lineage.abandoned(checkpoint)]

    def newest(self, attempt: int | None = None, before: int | None = None) -> Checkpoint | None:
        """The newest checkpoint that verifies, of a step `before` this (None: of any); those passed over are logged.
        None when there is none at all.

        Attempts before `attempt` (None: all) count as tries. Collective where torch.distributed runs: each rank then
        verifies a part. Raises `CheckpointError` when there are checkpoints and not one can be had: starting again
        from nothing would hide a loss.
        """
        ranks = self._ranks()
        refused: list[str] = []
        for checkpoint in reversed(ranks.on_rank0(self.committed)):
            if before is not None and checkpoint.step >= before:
                continue
            found = self._problems(ranks, checkpoint, attempt)
            if not found:
                return checkpoint
            log.warning("checkpoint passed over: %s", "; ".join(found))
            refused += found
        if refused:
            listed = "\n  ".join(refused)
            raise CheckpointError(
                f"{self.folder}: no checkpoint verifies; restore one, or give a new run.name to begin again\n  {listed}"
            )
        return None

    def verified(self, folder: Path) -> Checkpoint:
        """The checkpoint in `folder`, one of this store's. Collective like `newest`; raises `CheckpointError` when it
        does not verify.
        """
        ranks = self._ranks()
        parts = ranks.gather(lambda: problems(folder, ranks.rank, ranks.size))
        if found := ranks.on_rank0(lambda: [problem for part in parts for problem in part]):
            raise CheckpointError("\n  ".join([f"{folder}: does not verify; give another checkpoint", *found]))
        return next(checkpoint for checkpoint in committed(folder.parent) if checkpoint.folder == folder)

    def resume(self, attempt: int) -> Checkpoint | None:
        """What attempt `attempt` goes on from: `newest`, from then on part of the run's history, whatever is committed
        late. Raises like it.
        """
        chosen = self.newest(attempt)
        if self._first():
            self._lineage.record(attempt, chosen, "chosen")
        self._resuming = (attempt, chosen) if chosen is not None else None
        return chosen

    def load(self, checkpoint: Checkpoint, model: nn.Module, optimizer: Optimizer) -> None:
        """Load model and optimizer, resharding to the mesh they are on now (collective). `checkpoint` must come from
        `newest` or `resume`. Raises `CheckpointError`, that names tensors and shapes when the model is another.
        """
        settings = checkpoint.state()["optimizer_settings"]
        with _Try(self, checkpoint):
            load_tensors(checkpoint.folder / TENSORS, model, optimizer, settings, self._ranks().group)

    def load_weights(self, checkpoint: Checkpoint, model: nn.Module, new: Collection[str] = ()) -> None:
        """Load the model's weights alone (collective); `new` parameters stay as they are where the checkpoint has none
        of them. Raises like `load`.
        """
        with _Try(self, checkpoint):
            load_weights(checkpoint.folder / TENSORS, model, self._ranks().group, new)

    def _problems(self, ranks: RankGroup, checkpoint: Checkpoint, attempt: int | None) -> list[str]:
        failures = ranks.on_rank0(lambda: self._lineage.failures(checkpoint, attempt))
        if failures >= self.tries:
            return [f"{checkpoint.folder}: {failures} attempts began to load it and did not come through"]
        found = ranks.gather(lambda: problems(checkpoint.folder, ranks.rank, ranks.size))
        return ranks.on_rank0(lambda: [problem for part in found for problem in part])

    def _first(self) -> bool:
        return self._ranks().first if dist.is_initialized() else is_first_rank()

    def _ranks(self) -> RankGroup:
        running = dist.is_available() and dist.is_initialized()
        if self._group is None or (self._group.group is None and running):
            self._group = RankGroup(self.writer.timeout_s + 2 * GRACE_S)
        return self._group


def _same(hosts: Sequence[str]) -> None:
    if len(set(hosts)) > 1:
        raise CheckpointError(f"checkpoint.local_folder: the ranks are on {len(set(hosts))} nodes; leave it out")


class _Try:
    """Writes down what comes of loading a checkpoint that an attempt resumes from; a crash is written down, too."""

    def __init__(self, store: CheckpointStore, checkpoint: Checkpoint) -> None:
        self._store = store
        self._checkpoint = checkpoint

    def __enter__(self) -> None:
        self._record("began")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None or isinstance(error, Unfit):
            self._record("loaded" if error is None else "refused")

    def _record(self, outcome: Outcome) -> None:
        attempt, chosen = self._store._resuming or (0, None)
        if chosen == self._checkpoint and self._store._first():
            self._store._lineage.record(attempt, chosen, outcome)
