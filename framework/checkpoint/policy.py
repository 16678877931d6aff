"""When checkpoints are taken, and which stay."""

from __future__ import annotations

from dataclasses import dataclass, field

from framework.checkpoint.retention import KeepLast, Retention


@dataclass(frozen=True)
class CheckpointPolicy:
    """A checkpoint every `every` optimizer steps, at the end of each stage, and when the run is told to stop;
    `retention` keeps them few.
    """

    every: int
    retention: Retention = field(default_factory=KeepLast)

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ValueError(f"checkpoint.every: {self.every} steps; give at least 1")
