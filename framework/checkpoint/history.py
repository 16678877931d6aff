"""The checkpoints in a folder, the history they belong to, and their end."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol

from framework.run.files import write_text
from framework.run.layout import COMMIT, committed_steps, saved_steps

log = logging.getLogger(__name__)

Outcome = Literal["chosen", "began", "loaded", "refused"]
"""Of an attempt's resuming: how far it came with its choice, or that the checkpoint does not fit the recipe."""


@dataclass(frozen=True, order=True)
class Checkpoint:
    """A committed checkpoint: its step, the attempt that wrote it and its folder."""

    step: int
    attempt: int
    folder: Path

    def state(self) -> dict[str, Any]:
        """What was saved beside the tensors, the same on every rank."""
        state: dict[str, Any] = json.loads((self.folder / "state.json").read_text())
        return state

    @cached_property
    def metrics(self) -> dict[str, float]:
        """Measures of the training up to here, by name."""
        metrics: dict[str, float] = self.state().get("metrics", {})
        return metrics

    def rank_state(self, rank: int) -> dict[str, Any] | None:
        """What rank `rank` saved for itself; None when the checkpoint was written by fewer ranks."""
        path = self.folder / f"rank-{rank}.json"
        state: dict[str, Any] | None = json.loads(path.read_text()) if path.is_file() else None
        return state


def committed(folder: Path) -> list[Checkpoint]:
    """Checkpoints that have a COMMIT, oldest first; of one step, the later attempt is the newer."""
    return [Checkpoint(*saved) for saved in committed_steps(folder)]


class Retention(Protocol):
    """Chooses, among committed checkpoints, those to keep."""

    def keep(self, checkpoints: Sequence[Checkpoint]) -> set[Checkpoint]:
        """Those to keep of `checkpoints`, oldest first; the newest is kept whatever this returns."""
        ...


@dataclass(frozen=True)
class Tier:
    """A folder of checkpoints and what stays in it."""

    folder: Path
    retention: Retention


@dataclass(frozen=True)
class Choice:
    """That `attempt` chose to resume from the checkpoint named `chosen` of step `step` (None: to begin anew, at -1)."""

    attempt: int
    chosen: str | None
    step: int
    outcome: Outcome


class Lineage:
    """One history for a run, whatever its dead attempts leave behind.

    An attempt writes down what it resumes from before it loads. From then on, every checkpoint of an earlier attempt
    with a later step is off the run's history: it is chosen by nobody and deleted once this attempt has saved. That
    settles two cases. A daemon that outlives its killed attempt may still commit, in its own attempt's folder; if that
    comes after the next attempt chose an older checkpoint, the late one stays unused, since the run's ledgers and
    metrics have gone on from the older. And a checkpoint that was passed over does not come back some attempts later.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "attempts"

    def record(self, attempt: int, checkpoint: Checkpoint | None, outcome: Outcome) -> None:
        """Write down, so that it lasts, what `attempt` resumes from and what came of it."""
        chosen, step = (checkpoint.folder.name, checkpoint.step) if checkpoint else (None, -1)
        choice = {"attempt": attempt, "chosen": chosen, "step": step, "outcome": outcome}
        write_text(self.folder / f"attempt-{attempt}.json", json.dumps(choice))

    def choices(self) -> list[Choice]:
        """What all attempts chose."""
        return [Choice(**json.loads(file.read_text())) for file in self.folder.glob("attempt-*.json")]

    def abandoned(self, checkpoint: Checkpoint) -> bool:
        """Whether a later attempt went on from an earlier step."""
        return any(choice.attempt > checkpoint.attempt and choice.step < checkpoint.step for choice in self.choices())

    def failures(self, checkpoint: Checkpoint, before: int | None = None) -> int:
        """Attempts (those `before` one) that began to load `checkpoint` and did not come through."""
        return sum(
            choice.chosen == checkpoint.folder.name
            and choice.outcome == "began"
            and (before is None or choice.attempt < before)
            for choice in self.choices()
        )


def superseded(tier: Tier, lineage: Lineage, newest: Path) -> list[Path]:
    """What `tier` no longer keeps, now that the checkpoint in folder `newest` is there. Nothing where that is not the
    newest of the run's history: another attempt has taken over, and this one deletes no more.
    """
    checkpoints = committed(tier.folder)
    alive = [checkpoint for checkpoint in checkpoints if not lineage.abandoned(checkpoint)]
    if not alive or alive[-1].folder != newest:
        return []
    kept = tier.retention.keep(alive) | {alive[-1]}
    return [checkpoint.folder for checkpoint in checkpoints if checkpoint not in kept]


def unfinished(tier: Tier, attempt: int) -> list[Path]:
    """What attempts up to `attempt`, which is saving nothing now, left without COMMIT."""
    return [saved.folder for saved in saved_steps(tier.folder) if not saved.committed and saved.attempt <= attempt]


def remove(folder: Path) -> None:
    """Delete a checkpoint, or what is left of one. COMMIT goes first, so that a crash leaves nothing that seems whole.

    What cannot be deleted is logged: it costs space, not trust.
    """
    try:
        (folder / COMMIT).unlink(missing_ok=True)
        if folder.is_dir():
            shutil.rmtree(folder)
    except OSError as error:
        log.warning("%s: could not be deleted: %s", folder, error)
