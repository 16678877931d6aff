"""What the ranks of a run do together in a save. A failure of one is told to all, so that none waits for it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Generic, TypeVar

import torch.distributed as dist

from framework.checkpoint.manifest import CheckpointError

log = logging.getLogger(__name__)
T = TypeVar("T")


class SaveLost(RuntimeError):  # noqa: N818  # no error: the next save may well succeed
    """The save in flight came to nothing, for a reason that need not hold for the next: a process died, or hung."""


@dataclass(frozen=True)
class _Outcome(Generic[T]):
    rank: int
    value: T | None = None
    failure: str | None = None
    lost: bool = False


class RankGroup:
    """All ranks of torch.distributed where it runs, else this process alone.

    The group is gloo and their own: collectives of a save neither touch a GPU nor mix with those of training. Its
    methods are collective; one thread at a time may call them. Building it is collective, too.
    """

    def __init__(self, timeout_s: float) -> None:
        self.group: dist.ProcessGroup | None = None
        self.rank, self.size = 0, 1
        if dist.is_available() and dist.is_initialized():
            self.rank, self.size = dist.get_rank(), dist.get_world_size()
            group = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout_s))
            assert isinstance(group, dist.ProcessGroup)  # it has all ranks
            self.group = group

    @property
    def first(self) -> bool:
        """Whether this is the rank that decides."""
        return self.rank == 0

    def gather(self, action: Callable[[], T]) -> list[T]:
        """Do `action` on every rank; the first gets what it returned on each, the others an empty list.

        Raises on every rank when it failed on any: `SaveLost` when all failures were such, else `CheckpointError`.
        """
        outcomes = self._gather(self._try(action))
        failures = self._broadcast([found for found in outcomes if found.failure is not None])
        _raise(failures)
        return [found.value for found in outcomes]  # type: ignore[misc]  # a value may itself be None

    def on_rank0(self, action: Callable[[], T]) -> T:
        """Do `action` on the first rank; every rank gets its result, or raises its failure."""
        outcome: _Outcome[T] = self._broadcast(self._try(action) if self.first else _Outcome(0))
        _raise([outcome] if outcome.failure is not None else [])
        return outcome.value  # type: ignore[return-value]  # a value may itself be None

    def scatter(self, action: Callable[[], Sequence[T]]) -> T:
        """Do `action` on the first rank, which returns one item for each rank; every rank gets its own."""
        items: list[Any] = []
        if self.first:
            outcome = self._try(action)
            items = [_Outcome(0, item) for item in outcome.value or ()] if outcome.failure is None else []
            items = items or [outcome] * self.size
        mine: list[Any] = [items[0] if items else None]
        if self.group is not None:
            dist.scatter_object_list(mine, items if self.first else None, src=0, group=self.group)
        _raise([mine[0]] if mine[0].failure is not None else [])
        value: T = mine[0].value
        return value

    def _try(self, action: Callable[[], T]) -> _Outcome[T]:
        try:
            return _Outcome(self.rank, action())
        except (CheckpointError, SaveLost) as error:
            return _Outcome(self.rank, failure=str(error), lost=isinstance(error, SaveLost))
        except Exception as error:
            log.exception("checkpoint: rank %d failed", self.rank)
            return _Outcome(self.rank, failure=f"{type(error).__name__}: {error}")

    def _gather(self, mine: T) -> list[T]:
        if self.group is None:
            return [mine]
        everyone: list[Any] | None = [None] * self.size if self.first else None
        dist.gather_object(mine, everyone, dst=0, group=self.group)
        return everyone or []

    def _broadcast(self, value: T) -> T:
        box: list[Any] = [value]
        if self.group is not None:
            dist.broadcast_object_list(box, src=0, group=self.group)
        told: T = box[0]
        return told


def _raise(failures: Sequence[_Outcome[Any]]) -> None:
    if not failures:
        return
    alone = len(failures) == 1
    text = "; ".join(f"{found.failure}" if alone else f"rank {found.rank}: {found.failure}" for found in failures)
    raise SaveLost(text) if all(found.lost for found in failures) else CheckpointError(text)
