"""What the first rank does for all ranks of a run."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch.distributed as dist

from framework.generation.engine import EngineError

T = TypeVar("T")


def is_rank0() -> bool:
    """Whether this process is the run's first rank, which brings the weights to the servers."""
    return not dist.is_initialized() or dist.get_rank() == 0


def barrier() -> None:
    """Waits for all ranks."""
    if dist.is_initialized():
        dist.barrier()


def on_rank0(action: Callable[[], T]) -> T:
    """Returns on all ranks what `action` returns on the first, and raises on all the `EngineError` that it raises
    there (collective).
    """
    if not dist.is_initialized():
        return action()
    outcome: list[T | EngineError | None] = [None]
    if is_rank0():
        try:
            outcome = [action()]
        except EngineError as error:
            outcome = [error]
    dist.broadcast_object_list(outcome)
    if isinstance(outcome[0], EngineError):
        raise outcome[0]
    return outcome[0]  # type: ignore[return-value]  # what the action returned
