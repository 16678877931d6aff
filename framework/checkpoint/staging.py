"""Copies of tensors in host memory, made while the next step computes."""

from __future__ import annotations

import math
import mmap
import os
import sys
import tempfile
import threading
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from framework.checkpoint.manifest import CheckpointError
from framework.checkpoint.tensors import local

ALIGNMENT = 64
"""Bytes; no two tensors share a cache line."""


@dataclass(frozen=True)
class Slot:
    """Where a tensor lies in an arena."""

    offset: int
    """Bytes from the arena's start."""
    shape: tuple[int, ...]
    """Shape of the part that this rank holds."""
    dtype: torch.dtype
    """Its element type."""

    @property
    def bytes(self) -> int:
        """Size of the slot."""
        return math.prod(self.shape) * self.dtype.itemsize


class Arena:
    """Host memory for one tensor per slot, which another process can map through one file descriptor.

    The memory is an anonymous file. Neither the limit of /dev/shm (64 MB in most containers) nor that on descriptors
    applies, and the kernel frees the memory with the last process that maps it, however that process ends.

    Args:
        slots: Where each tensor lies, by name.
        descriptor: File descriptor of another process's arena with the same slots; None allocates the memory.
    """

    def __init__(self, slots: Mapping[str, Slot], descriptor: int | None = None) -> None:
        self.slots = dict(slots)
        size = max(sum(_padded(slot.bytes) for slot in slots.values()), mmap.PAGESIZE)
        self.descriptor = _anonymous_file(size) if descriptor is None else descriptor
        self._memory = mmap.mmap(self.descriptor, size)
        self._size = size
        self._pinned = False
        self.tensors = {name: self._view(slot) for name, slot in slots.items()}

    @classmethod
    def like(cls, tensors: Mapping[str, Tensor]) -> Arena:
        """An arena for this rank's parts of `tensors`; pinned when they lie on a GPU.

        Raises `CheckpointError` when the host lacks memory.
        """
        slots, offset = {}, 0
        for name, tensor in tensors.items():
            part = local(tensor)
            slots[name] = Slot(offset, tuple(part.shape), part.dtype)
            offset += _padded(slots[name].bytes)
        try:
            arena = cls(slots)
        except OSError as error:
            raise CheckpointError(f"no host memory for {offset} bytes of checkpoint ({error})") from error
        if any(tensor.is_cuda for tensor in tensors.values()):
            arena._pin()
        return arena

    def close(self) -> None:
        """Free the memory; nobody may be reading from it."""
        if self._pinned:
            torch.cuda.cudart().cudaHostUnregister(self._address())
        self._pinned = False
        self.tensors = {}
        os.close(self.descriptor)

    def _view(self, slot: Slot) -> Tensor:
        # Each gets a storage of its own: torch's writer would copy a part of a storage first.
        if slot.bytes == 0:
            return torch.empty(slot.shape, dtype=slot.dtype)
        raw = torch.frombuffer(self._memory, dtype=torch.uint8, count=slot.bytes, offset=slot.offset)
        return raw.view(slot.dtype).view(slot.shape)

    def _address(self) -> int:
        return torch.frombuffer(self._memory, dtype=torch.uint8, count=1).data_ptr()

    def _pin(self) -> None:
        code = int(torch.cuda.cudart().cudaHostRegister(self._address(), self._size, 1))
        self._pinned = code == 0  # else copies are slower, but correct


def _padded(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _anonymous_file(size: int) -> int:
    if sys.platform == "linux":
        descriptor = os.memfd_create("checkpoint")
        os.posix_fallocate(descriptor, 0, size)  # too little memory raises here instead of crashing later
    else:
        with tempfile.TemporaryFile() as file:
            file.truncate(size)
            descriptor = os.dup(file.fileno())
    return descriptor


class HostCopy:
    """A copy of `tensors` to host memory, started on the thread that trains and made by `run` on another.

    The constructor clones the tensors named in `changed_by_forward`. The others must not change before `wait` returns,
    which is called before the optimizer's step. On GPUs nothing waits on the host: the copies run on a stream of their
    own, after all work queued so far and before any queued after `wait`.
    """

    def __init__(self, tensors: Mapping[str, Tensor], changed_by_forward: set[str]) -> None:
        self._tensors = {
            name: local(value).clone() if name in changed_by_forward else value for name, value in tensors.items()
        }
        self._queued = threading.Event()
        self._stream: torch.cuda.Stream | None = None
        self._copied: torch.cuda.Event | None = None
        device = next((tensor.device for tensor in tensors.values() if tensor.is_cuda), None)
        if device is not None:
            self._stream = torch.cuda.Stream(device)
            self._stream.wait_stream(torch.cuda.current_stream(device))

    def run(self, arena: Arena | None) -> Arena:
        """Copy into `arena` (None: a new one) and return it once it holds everything.

        Raises `CheckpointError` when the host lacks memory.
        """
        try:
            arena = arena or Arena.like(self._tensors)
            sources = [local(tensor) for tensor in self._tensors.values()]
            targets = [arena.tensors[name] for name in self._tensors]
            if self._stream is None:
                _copy(targets, sources)
            else:
                with torch.cuda.stream(self._stream):
                    _copy(targets, sources)
                    self._copied = self._stream.record_event()
        finally:
            self._tensors = {}
            self._queued.set()
        if self._copied is not None:
            self._copied.synchronize()
        return arena

    def wait(self) -> None:
        """Return once the weights may change: on a GPU, in the order in which work is queued."""
        self._queued.wait()
        if self._stream is not None and self._copied is not None:
            torch.cuda.current_stream(self._stream.device).wait_event(self._copied)


def _copy(targets: list[Tensor], sources: list[Tensor]) -> None:
    if any(source.is_cuda for source in sources):
        for target, source in zip(targets, sources, strict=True):
            target.copy_(source, non_blocking=True)
    elif targets:  # one call, during which training runs: each call waits for the interpreter
        torch._foreach_copy_(targets, sources)
