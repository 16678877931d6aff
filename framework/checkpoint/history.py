"""The checkpoints in a folder, the history of the run they belong to, and which of them to delete."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol

from framework.checkpoint.manifest import CheckpointError
from framework.run.files import write_text
from framework.run.layout import COMMIT, SavedStep, committed_steps, saved_steps
from framework.run.progress import abandoned

log = logging.getLogger(__name__)

Outcome = Literal["chosen", "began", "loaded", "refused"]
"""How far an attempt came in resuming; `refused` means that the checkpoint does not fit the recipe."""


@dataclass(frozen=True, order=True)
class Checkpoint:
    """A committed checkpoint."""

    step: int
    """Optimizer steps taken."""
    attempt: int
    """Attempt of the run that wrote it."""
    folder: Path
    """Folder that holds it."""

    def state(self) -> dict[str, Any]:
        """What was saved in addition to the tensors, the same on every rank."""
        state: dict[str, Any] = json.loads((self.folder / "state.json").read_text())
        return state

    @cached_property
    def hash(self) -> str:
        """The hash of all that it holds, by its COMMIT."""
        return SavedStep(self.step, self.attempt, self.folder).hash

    @cached_property
    def metrics(self) -> dict[str, float]:
        """Training metrics by name, each a mean over the steps since the checkpoint before."""
        metrics: dict[str, float] = self.state().get("metrics", {})
        return metrics

    def rank_state(self, rank: int) -> dict[str, Any] | None:
        """What `rank` saved for itself; None when fewer ranks wrote the checkpoint."""
        path = self.folder / f"rank-{rank}.json"
        state: dict[str, Any] | None = json.loads(path.read_text()) if path.is_file() else None
        return state


def committed(folder: Path) -> list[Checkpoint]:
    """Checkpoints in `folder` that have a COMMIT, oldest first; of one step, the later attempt is newer."""
    return [Checkpoint(*saved) for saved in committed_steps(folder)]


class Retention(Protocol):
    """Chooses which committed checkpoints to keep."""

    def keep(self, checkpoints: Sequence[Checkpoint]) -> set[Checkpoint]:
        """Those of `checkpoints`, given oldest first, to keep. The newest is kept in any case."""
        ...


@dataclass(frozen=True)
class Tier:
    """A folder of checkpoints with its own retention."""

    folder: Path
    """Folder that holds the checkpoints' folders."""
    retention: Retention
    """Chooses which of them to keep."""


@dataclass(frozen=True)
class Choice:
    """What an attempt resumes from."""

    attempt: int
    """The attempt that resumes."""
    chosen: str | None
    """Folder name of the checkpoint; None for a fresh start."""
    step: int
    """The checkpoint's step; -1 for a fresh start."""
    outcome: Outcome
    """How far the attempt came with it."""


class Lineage:
    """Keeps one history per run, whatever dead attempts leave behind.

    An attempt records what it resumes from before it loads. From then on, every checkpoint of an earlier attempt with a
    later step is off the run's history: no attempt chooses it, and it is deleted once this attempt has saved. This
    settles two cases. A daemon that outlives its killed attempt may still commit, in its own attempt's folder. When
    that happens after the next attempt chose an older checkpoint, the late one stays unused, since the run's ledgers
    and metrics have continued from the older. And a checkpoint that was passed over does not return some attempts
    later.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "attempts"

    def record(self, attempt: int, checkpoint: Checkpoint | None, outcome: Outcome) -> None:
        """Record durably what `attempt` resumes from and how far it came."""
        chosen, step = (checkpoint.folder.name, checkpoint.step) if checkpoint else (None, -1)
        choice = {"attempt": attempt, "chosen": chosen, "step": step, "outcome": outcome}
        write_text(self.folder / f"attempt-{attempt}.json", json.dumps(choice))

    def choices(self) -> list[Choice]:
        """The choices of all attempts. Raises `CheckpointError` for a file that tells none: which checkpoints belong to
        the run's history cannot be known without it.
        """
        return [_read_choice(file) for file in self.folder.glob("attempt-*.json")]

    def alive(self, checkpoints: Iterable[Checkpoint]) -> list[Checkpoint]:
        """Those of `checkpoints` in the run's history: no later attempt resumed from an earlier step."""
        resumed = [(choice.attempt, choice.step) for choice in self.choices()]
        return [each for each in checkpoints if not abandoned(each.attempt, each.step, resumed)]

    def failures(self, checkpoint: Checkpoint, before: int | None = None) -> int:
        """Number of attempts earlier than `before` (None: all) that began to load `checkpoint` and did not finish."""
        return sum(
            choice.chosen == checkpoint.folder.name
            and choice.outcome == "began"
            and (before is None or choice.attempt < before)
            for choice in self.choices()
        )


def _read_choice(file: Path) -> Choice:
    try:
        choice = Choice(**json.loads(file.read_bytes()))
        if not isinstance(choice.attempt, int) or not isinstance(choice.step, int):
            raise TypeError("attempt or step is no whole number")
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise CheckpointError(
            f"{file}: {error}: does not say what an attempt went on from; restore it, or write "
            '{"attempt": N, "chosen": null, "step": -1, "outcome": "chosen"} where it started afresh'
        ) from error
    return choice


def superseded(tier: Tier, lineage: Lineage, newest: Path) -> list[Path]:
    """Folders of `tier` to delete, now that the checkpoint in folder `newest` is committed.

    Empty when `newest` is not the newest of the run's history: another attempt has taken over, and this one deletes
    nothing more.
    """
    checkpoints = committed(tier.folder)
    alive = lineage.alive(checkpoints)
    if not alive or alive[-1].folder != newest:
        return []
    retained = tier.retention.keep(alive) | {alive[-1]}
    return [checkpoint.folder for checkpoint in checkpoints if checkpoint not in retained]


def unfinished(tier: Tier, attempt: int) -> list[Path]:
    """Folders without COMMIT that attempts up to `attempt` left. `attempt` itself must not be saving."""
    return [saved.folder for saved in saved_steps(tier.folder) if not saved.committed and saved.attempt <= attempt]


def remove(folder: Path) -> None:
    """Delete a checkpoint, or what is left of one. COMMIT goes first, so that a crash leaves no apparent checkpoint.

    A failure is logged, not raised: it costs space, not trust.
    """
    try:
        (folder / COMMIT).unlink(missing_ok=True)
        if folder.is_dir():
            shutil.rmtree(folder)
    except OSError as error:
        log.warning("%s: could not be deleted: %s", folder, error)
