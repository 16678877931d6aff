"""When checkpoints are taken, how they are written, and which stay."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from framework.checkpoint.history import Retention
from framework.checkpoint.retention import KeepLast
from framework.checkpoint.save_modes import Synchronous, Writer
from framework.checkpoint.store import CheckpointStore


@dataclass(frozen=True)
class CheckpointPolicy:
    """A checkpoint every `every` optimizer steps, at the end of each stage, and when the run is told to stop.

    `save_mode` writes them and `retention` keeps them few. `local_folder` is a folder on the node's own disk, where
    they are committed before they are copied to the run's (None: there at once). A step whose loss or gradient norm is
    not finite, which changes no weight, is not saved. After more than `bad_steps` of them in a row a stage goes back to
    the newest checkpoint's weights and on with the samples that are next, at most `roll_backs` times, as Chowdhery et
    al. 2022 (arXiv 2204.02311, section 5.1) did by hand; after that they end the run. A checkpoint that `tries`
    attempts could not load is passed over.
    """

    every: int
    retention: Retention = field(default_factory=KeepLast)
    save_mode: Writer = field(default_factory=Synchronous)
    local_folder: str | None = None
    bad_steps: int = 20
    roll_backs: int = 0
    tries: int = 3

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ValueError(f"checkpoint.every: {self.every} steps; give at least 1")
        for name, count in (("bad_steps", self.bad_steps), ("roll_backs", self.roll_backs)):
            if count < 0:
                raise ValueError(f"checkpoint.{name}: {count}; give 0 or more")
        if self.tries < 1:
            raise ValueError(f"checkpoint.tries: {self.tries}; give at least 1")

    def store(self, folder: Path) -> CheckpointStore:
        """The checkpoints under `folder`. On the node's own disk they lie under the same path, so that no two runs
        meet.
        """
        local_folder = (
            None if self.local_folder is None else Path(self.local_folder) / folder.resolve().relative_to("/")
        )
        return CheckpointStore(folder, self.retention, self.save_mode, local_folder, self.tries)
