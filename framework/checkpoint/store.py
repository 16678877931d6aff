"""The folder of checkpoints of a run: write, commit, verify, choose, load, retire (contract 3).

checkpoints/step-00000100.attempt-2/
    tensors/        torch.distributed.checkpoint, tensors alone
    state.json      step, attempt, stage, optimizer settings, schedule: the same on every rank
    rank-0.json ... cursor and random generators, one per rank
    manifest.json   size and hash of every file above
    COMMIT          the manifest's hash, written last
"""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import nn
from torch.optim import Optimizer

from framework.checkpoint.manifest import COMMIT, CheckpointError, commit, problems
from framework.checkpoint.retention import Retention
from framework.checkpoint.tensors import load_tensors, load_weights, save_tensors

log = logging.getLogger(__name__)


@dataclass(frozen=True, order=True, slots=True)
class Checkpoint:
    """A committed checkpoint: its step, the attempt that wrote it and its folder."""

    step: int
    attempt: int
    folder: Path

    def state(self) -> dict[str, Any]:
        """What was saved beside the tensors, the same on every rank."""
        state: dict[str, Any] = json.loads((self.folder / "state.json").read_text())
        return state

    def rank_state(self, rank: int) -> dict[str, Any] | None:
        """What rank `rank` saved for itself; None when the checkpoint was written by fewer ranks."""
        path = self.folder / f"rank-{rank}.json"
        state: dict[str, Any] | None = json.loads(path.read_text()) if path.is_file() else None
        return state


class CheckpointStore:
    """Checkpoints under `folder`, kept by `retention`."""

    def __init__(self, folder: Path, retention: Retention) -> None:
        self.folder = folder
        self.retention = retention

    def save(
        self,
        step: int,
        attempt: int,
        model: nn.Module,
        optimizer: Optimizer,
        state: dict[str, Any],
        rank_state: dict[str, Any],
    ) -> Checkpoint:
        """Write and commit a checkpoint (collective). `state` and `rank_state` must be JSON. Raises `CheckpointError`
        when the disk refuses.
        """
        folder = self.folder / f"step-{step:08d}.attempt-{attempt}"
        rank = dist.get_rank() if dist.is_initialized() else 0
        try:
            if rank == 0:
                shutil.rmtree(folder, ignore_errors=True)  # an unfinished save of this very attempt
                folder.mkdir(parents=True)
            _barrier()
            settings = save_tensors(folder / "tensors", model, optimizer)
            (folder / f"rank-{rank}.json").write_text(json.dumps(rank_state))
            if rank == 0:
                facts = {"step": step, "attempt": attempt, "optimizer_settings": settings, **state}
                (folder / "state.json").write_text(json.dumps(facts, indent=1))
            _barrier()
            if rank == 0:
                commit(folder)
        except OSError as error:
            raise CheckpointError(
                f"{folder}: could not be written ({error}); free space, or give another run.folder"
            ) from error
        _barrier()
        if rank == 0:
            self._retire()
        return Checkpoint(step, attempt, folder)

    def committed(self) -> list[Checkpoint]:
        """Checkpoints that have a COMMIT, oldest first; of one step, the later attempt is the newer."""
        found = []
        for marker in self.folder.glob(f"step-*.attempt-*/{COMMIT}"):
            step, attempt = marker.parent.name.removeprefix("step-").split(".attempt-")
            found.append(Checkpoint(int(step), int(attempt), marker.parent))
        return sorted(found)

    def newest(self) -> Checkpoint | None:
        """The newest checkpoint that verifies; those passed over are logged. None when there is none at all.

        Raises `CheckpointError` when there are checkpoints and not one verifies: starting again from nothing would
        hide a loss.
        """
        refused: list[str] = []
        for checkpoint in reversed(self.committed()):
            found = problems(checkpoint.folder)
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

    def load(self, checkpoint: Checkpoint, model: nn.Module, optimizer: Optimizer) -> None:
        """Load model and optimizer, resharding to the mesh they are on now (collective). `checkpoint` must come from
        `newest`.
        """
        load_tensors(checkpoint.folder / "tensors", model, optimizer, checkpoint.state()["optimizer_settings"])

    def load_weights(self, checkpoint: Checkpoint, model: nn.Module) -> None:
        """Load the model's weights alone (collective)."""
        load_weights(checkpoint.folder / "tensors", model)

    def _retire(self) -> None:
        checkpoints = self.committed()
        kept = self.retention.keep([checkpoint.step for checkpoint in checkpoints])
        for checkpoint in checkpoints[:-1]:
            if checkpoint.step not in kept:
                (
                    checkpoint.folder / COMMIT
                ).unlink()  # first, so that a crash leaves no half-deleted checkpoint that seems whole
                shutil.rmtree(checkpoint.folder)


def _barrier() -> None:
    if dist.is_initialized():
        dist.barrier()
