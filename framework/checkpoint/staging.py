"""Copies of tensors in host memory, taken while the next step computes."""

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
"""Bytes; no tensor shares a cache line with the next."""


@dataclass(frozen=True)
class Slot:
    """Where a tensor lies in an arena."""

    offset: int
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def bytes(self) -> int:
        """Its length."""
        return math.prod(self.shape) * self.dtype.itemsize


class Arena:
    """Host memory for one tensor per slot, which another process can map through one file descriptor.

    The memory is an anonymous file: the limits of /dev/shm (64 MB in most containers) and on descriptors do not
    matter, and the kernel frees it with the last process that maps it, however that ends.
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
        """An arena for the parts of `tensors` on this rank; pinned where they lie on a GPU.

        Raises `CheckpointError` when the host has not enough memory.
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
        """Give the memory back, once nobody writes from it."""
        if self._pinned:
            torch.cuda.cudart().cudaHostUnregister(self._address())
        self._pinned = False
        self.tensors = {}
        os.close(self.descriptor)

    def _view(self, slot: Slot) -> Tensor:
        # A storage of its own for each: of a part of a storage, torch's writer would make a copy first.
        if slot.bytes == 0:
            return torch.empty(slot.shape, dtype=slot.dtype)
        raw = torch.frombuffer(self._memory, dtype=torch.uint8, count=slot.bytes, offset=slot.offset)
        return raw.view(slot.dtype).view(slot.shape)

    def _address(self) -> int:
        return torch.frombuffer(self._memory, dtype=torch.uint8, count=1).data_ptr()

    def _pin(self) -> None:
        code = int(torch.cuda.cudart().cudaHostRegister(self._address(), self._size, 1))
        self._pinned = code == 0  # else copies are slower, and right all the same


def _padded(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _anonymous_file(size: int) -> int:
    if sys.platform == "linux":
        descriptor = os.memfd_create("checkpoint")
        os.posix_fallocate(descriptor, 0, size)  # too little memory is an error here, and would be a crash later
    else:
        with tempfile.TemporaryFile() as file:
            file.truncate(size)
            descriptor = os.dup(file.fileno())
    return descriptor


class Copying:
    """A copy of `tensors`, begun on the thread that trains and done by `run` on another.

    Tensors named in `at_once`, those that a forward pass changes, are copied before this returns. The rest must not
    change before `wait` has returned, which is called before the optimizer's step. On GPUs nobody waits on the host:
    the copies run on a stream of their own, after all work queued so far and before any queued after `wait`.
    """

    def __init__(self, tensors: Mapping[str, Tensor], at_once: set[str]) -> None:
        self._tensors = {name: local(value).clone() if name in at_once else value for name, value in tensors.items()}
        self._queued = threading.Event()
        self._stream: torch.cuda.Stream | None = None
        self._copied: torch.cuda.Event | None = None
        device = next((tensor.device for tensor in tensors.values() if tensor.is_cuda), None)
        if device is not None:
            self._stream = torch.cuda.Stream(device)
            self._stream.wait_stream(torch.cuda.current_stream(device))

    def run(self, arena: Arena | None) -> Arena:
        """Copy into `arena` (None: a new one); returns it when it holds everything. Raises `CheckpointError` when the
        host has not enough memory.
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
        """Return when the weights may change: on a GPU, in the order in which work is queued."""
        self._queued.wait()
        if self._stream is not None and self._copied is not None:
            torch.cuda.current_stream(self._stream.device).wait_event(self._copied)


def _copy(targets: list[Tensor], sources: list[Tensor]) -> None:
    if any(source.is_cuda for source in sources):
        for target, source in zip(targets, sources, strict=True):
            target.copy_(source, non_blocking=True)
    elif targets:  # in one call, during which training runs: each call would wait for the interpreter anew
        torch._foreach_copy_(targets, sources)
