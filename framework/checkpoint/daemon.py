"""A writer in a process of its own: writing and hashing take neither the interpreter nor the cores' time from training.

The daemon has no peers and decides nothing: what all ranks have written is committed when the trainer of the first rank
says so. So one that dies takes nothing with it but a save, and one that is left over by a killed trainer commits
nothing that was not about to be. It reads from memory that the trainer shares, and ends when the trainer does.
"""

from __future__ import annotations

import os
import pickle
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle, send_handle
from pathlib import Path
from typing import Any

import torch

from framework.checkpoint.checkpoint_writer import CheckpointWriter, SaveRequest
from framework.checkpoint.manifest import CheckpointError
from framework.checkpoint.plan import Share
from framework.checkpoint.rank_group import SaveLost
from framework.checkpoint.staging import Arena

NICENESS = 10
"""Training has the first call on the cores."""


class Daemon:
    """A writer, made by `writer`, in another process; its methods are the writer's, carried over.

    They raise `SaveLost` when the process dies, or has not answered before `deadline` (on the monotonic clock); it is
    killed then, and a new `Daemon` must take its place. The process starts at once and takes seconds to be ready.
    """

    def __init__(self, writer: Callable[[], CheckpointWriter] = CheckpointWriter) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            # No fork, which a process with CUDA and threads would not survive, and no multiprocessing, whose children
            # import the main module again and die of the SIGTERM that a scheduler sends to all.
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env={
                    **os.environ,
                    "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
                    "CUDA_VISIBLE_DEVICES": "",  # or torch's writer would open a context on the GPU
                },
            )
        self._connection = Connection(ours.detach())
        self._arena: Arena | None = None
        self._killed = False
        with suppress(OSError):  # dead already, which the first call will tell
            self._connection.send_bytes(pickle.dumps(writer))
        self.deadline = float("inf")

    @property
    def pid(self) -> int:
        """The process."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return not self._killed and self._process.poll() is None

    def take(self, share: Share, arena: Arena) -> None:
        """Write from `arena` from now on; the same one again costs nothing."""
        if arena is not self._arena:
            self._send("take", share, arena.slots, descriptor=arena.descriptor)
            self._answer()
            self._arena = arena

    def clear(self, order: SaveRequest) -> None:
        """See `CheckpointWriter`."""
        self._call("clear", order)

    def write(self, order: SaveRequest) -> bytes:
        """See `CheckpointWriter`."""
        receipt: bytes = self._call("write", order)
        return receipt

    def commit(self, order: SaveRequest, receipts: Sequence[bytes]) -> None:
        """See `CheckpointWriter`."""
        self._call("commit", order, receipts)

    def copy(self, order: SaveRequest) -> None:
        """See `CheckpointWriter`."""
        self._call("copy", order)

    def commit_copies(self, order: SaveRequest) -> None:
        """See `CheckpointWriter`."""
        self._call("commit_copies", order)

    def superseded(self, order: SaveRequest) -> list[Path]:
        """See `CheckpointWriter`."""
        folders: list[Path] = self._call("superseded", order)
        return folders

    def verify(self, order: SaveRequest) -> list[str]:
        """See `CheckpointWriter`."""
        found: list[str] = self._call("verify", order)
        return found

    def delete(self, folders: Sequence[Path]) -> None:
        """See `CheckpointWriter`."""
        self._call("delete", folders)

    def kill(self) -> int | None:
        """End the process, and wait a little: in the middle of a system call it cannot die. Returns its exit code."""
        self._killed = True
        self._process.kill()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(5.0)
        return self._process.returncode

    def close(self) -> None:
        """Give everything back; no method may be under way."""
        self.kill()
        self._connection.close()

    def _call(self, method: str, *arguments: Any) -> Any:
        self._send(method, *arguments)
        return self._answer()

    def _send(self, *message: Any, descriptor: int | None = None) -> None:
        try:
            self._connection.send(message)
            if descriptor is not None:
                send_handle(self._connection, descriptor, self.pid)
        except OSError as error:
            raise self._lost() from error

    def _answer(self) -> Any:
        try:
            left = max(0.0, self.deadline - time.monotonic())
            if not self._connection.poll(None if left == float("inf") else left):
                self.kill()
                raise SaveLost(f"checkpoint daemon {self.pid} did not answer in time and was killed")
            value, failure = self._connection.recv()
        except (EOFError, OSError) as error:
            raise self._lost() from error
        if failure is not None:
            raise CheckpointError(failure)
        return value

    def _lost(self) -> SaveLost:
        return SaveLost(f"checkpoint daemon {self.pid} died (code {self.kill()})")


def _serve(connection: Connection) -> None:
    """Do what comes over `connection`, one after the other; end as soon as its other end is gone."""
    orders: queue.Queue[tuple[Any, ...]] = queue.Queue()
    writer: CheckpointWriter = pickle.loads(connection.recv_bytes())()  # noqa: S301  # from the trainer that began us

    def listen() -> None:
        try:
            while True:
                method, *arguments = connection.recv()
                if method == "take":
                    arguments.append(recv_handle(connection))
                orders.put((method, *arguments))
        except (EOFError, OSError):
            os._exit(0)  # in the middle of a write, too: nobody is left to commit it

    threading.Thread(target=listen, daemon=True).start()
    while True:
        method, *arguments = orders.get()
        try:
            if method == "take":
                share, slots, descriptor = arguments
                writer.take(share, Arena(slots, descriptor).tensors)
                os.close(descriptor)
                connection.send((None, None))
            else:
                connection.send((getattr(writer, method)(*arguments), None))
        except CheckpointError as error:
            connection.send((None, str(error)))
        except BrokenPipeError:
            os._exit(0)
        except Exception as error:
            connection.send((None, f"checkpoint daemon: {type(error).__name__}: {error}"))


if __name__ == "__main__":
    # Sent to the whole job; the trainer's last save still needs us.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    os.nice(NICENESS)
    torch.set_num_threads(1)
    _serve(Connection(int(sys.argv[1])))
