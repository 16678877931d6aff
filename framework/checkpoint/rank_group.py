"""How the ranks of a run act together in a save. A failure on one rank is raised on all, so that none hangs."""

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


class SaveLostError(RuntimeError):
    """The save in flight failed for a reason that need not hold for the next: a process died or hung."""


@dataclass(frozen=True)
class _Result(Generic[T]):
    rank: int
    value: T | None = None
    failure: str | None = None
    lost: bool = False


class RankGroup:
    """All ranks of torch.distributed where it runs, else this process alone.

    The ranks form a gloo group of their own, so that a save's collectives neither touch a GPU nor mix with those of
    training. All methods are collective, and so is building the group. One thread at a time may call them.

    Args:
        timeout_s: Seconds that a collective waits for the other ranks.
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
    def is_rank0(self) -> bool:
        """Whether this is the first rank, which decides for all."""
        return self.rank == 0

    def gather(self, action: Callable[[], T]) -> list[T]:
        """Run `action` on every rank; returns all results on the first rank and an empty list on the others.

        When it fails on any rank, every rank raises: `SaveLostError` if all failures were such, else `CheckpointError`.
        """
        results = self._gather(self._try(action))
        failures = self._broadcast([result for result in results if result.failure is not None])
        _raise(failures)
        return [result.value for result in results]  # type: ignore[misc]  # a value may itself be None

    def on_rank0(self, action: Callable[[], T]) -> T:
        """Run `action` on the first rank; every rank returns its result or raises its failure."""
        result: _Result[T] = self._broadcast(self._try(action) if self.is_rank0 else _Result(0))
        _raise([result] if result.failure is not None else [])
        return result.value  # type: ignore[return-value]  # a value may itself be None

    def scatter(self, action: Callable[[], Sequence[T]]) -> T:
        """Run `action` on the first rank, which returns one item per rank; every rank returns its own item."""
        items: list[Any] = []
        if self.is_rank0:
            result = self._try(action)
            items = [_Result(0, item) for item in result.value or ()] if result.failure is None else []
            items = items or [result] * self.size
        own: list[Any] = [items[0] if items else None]
        if self.group is not None:
            dist.scatter_object_list(own, items if self.is_rank0 else None, src=0, group=self.group)
        _raise([own[0]] if own[0].failure is not None else [])
        value: T = own[0].value
        return value

    def _try(self, action: Callable[[], T]) -> _Result[T]:
        try:
            return _Result(self.rank, action())
        except (CheckpointError, SaveLostError) as error:
            return _Result(self.rank, failure=str(error), lost=isinstance(error, SaveLostError))
        except Exception as error:
            log.exception("checkpoint: rank %d failed", self.rank)
            return _Result(self.rank, failure=f"{type(error).__name__}: {error}")

    def _gather(self, own: T) -> list[T]:
        if self.group is None:
            return [own]
        values: list[Any] | None = [None] * self.size if self.is_rank0 else None
        dist.gather_object(own, values, dst=0, group=self.group)
        return values or []

    def _broadcast(self, value: T) -> T:
        box: list[Any] = [value]
        if self.group is not None:
            dist.broadcast_object_list(box, src=0, group=self.group)
        received: T = box[0]
        return received


def _raise(failures: Sequence[_Result[Any]]) -> None:
    if not failures:
        return
    alone = len(failures) == 1
    text = "; ".join(f"{one.failure}" if alone else f"rank {one.rank}: {one.failure}" for one in failures)
    raise SaveLostError(text) if all(one.lost for one in failures) else CheckpointError(text)
