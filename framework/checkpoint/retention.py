"""Which committed checkpoints stay."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class Retention(Protocol):
    """Chooses, among the steps of verified checkpoints, those to keep."""

    def keep(self, steps: Sequence[int]) -> set[int]:
        """Steps to keep; the newest is kept whatever this returns."""
        ...


class KeepLast:
    """Keep the newest `count` checkpoints, and for ever every one whose step is a multiple of `every` (None: none of
    them).
    """

    def __init__(self, count: int = 3, every: int | None = None) -> None:
        if count < 1:
            raise ValueError(f"checkpoint.retention.count: {count}; keep at least 1")
        self.count = count
        self.every = every

    def keep(self, steps: Sequence[int]) -> set[int]:
        """The newest `count` of `steps` and the multiples of `every`."""
        kept = set(sorted(steps)[-self.count :])
        if self.every:
            kept |= {step for step in steps if step % self.every == 0}
        return kept
