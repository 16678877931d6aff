"""When a run saves checkpoints, how it writes them, and which it keeps."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from framework.checkpoint.history import Retention
from framework.checkpoint.retention import KeepLast
from framework.checkpoint.save_modes import SaveMode, Synchronous
from framework.checkpoint.store import CheckpointStore
from framework.recipe.component import component
from framework.recipe.ranges import Count, PositiveCount


@component
@dataclass(frozen=True)
class CheckpointPolicy:
    """Saves every `every` optimizer steps, at the end of each stage, and when the run is asked to stop.

    A step whose loss or gradient norm is not finite changes no weight and is not saved. After more than `bad_steps`
    consecutive ones the stage rolls back to the newest checkpoint's weights and continues with the next samples, as
    Chowdhery et al. 2022 (arXiv 2204.02311, section 5.1) did by hand. After `roll_backs` rollbacks the run ends.
    """

    every: PositiveCount
    """Optimizer steps between checkpoints."""
    retention: Retention = field(default_factory=KeepLast)
    """Chooses which checkpoints to keep; by default the newest three."""
    save_mode: SaveMode = field(default_factory=Synchronous)
    """Writes the checkpoints: while training waits, or in the background."""
    local_folder: str | None = None
    """Folder on the node's own disk, where checkpoints are committed before they are copied to the run's folder; None
    commits them in the run's folder directly. It needs all ranks on one node."""
    bad_steps: Count = 20
    """Consecutive non-finite steps that are tolerated."""
    roll_backs: Count = 0
    """Rollbacks that a stage may make; 0 ends the run instead."""
    tries: PositiveCount = 3
    """Attempts that may fail to load a checkpoint before it is passed over."""

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ValueError(f"checkpoint.every: {self.every} steps; give at least 1")
        for name, count in (("bad_steps", self.bad_steps), ("roll_backs", self.roll_backs)):
            if count < 0:
                raise ValueError(f"checkpoint.{name}: {count}; give 0 or more")
        if self.tries < 1:
            raise ValueError(f"checkpoint.tries: {self.tries}; give at least 1")

    def store(self, folder: Path) -> CheckpointStore:
        """The store of the checkpoints under `folder`. On the node's own disk they lie under the same path, so that no
        two runs collide.
        """
        local_folder = (
            None if self.local_folder is None else Path(self.local_folder) / folder.resolve().relative_to("/")
        )
        return CheckpointStore(folder, self.retention, self.save_mode, local_folder, self.tries)
