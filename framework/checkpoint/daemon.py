"""A checkpoint writer in its own process: writing and hashing take neither the interpreter nor core time from training.

The daemon has no peers and decides nothing: it commits when the trainer of the first rank says so. A daemon that dies
loses one save, and a daemon that outlives a killed trainer commits nothing but the save that was about to be. It reads
from memory that the trainer shares, and ends when the trainer does.
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

from framework.checkpoint.checkpoint_writer import CheckpointWriter
from framework.checkpoint.manifest import CheckpointError
from framework.checkpoint.rank_group import SaveLostError
from framework.checkpoint.save import SaveRequest
from framework.checkpoint.save_plan import RankPlan
from framework.checkpoint.staging import Arena
from framework.recipe.credentials import mask_output

NICENESS = 10
"""Of the daemon's process: training has priority on the cores."""


class Daemon:
    """Implements `save.Writer` by calling a writer, which `writer` builds, in another process.

    All methods raise `SaveLostError` when the process dies or does not answer before `deadline` (on the monotonic
    clock). The process is killed then, and a new `Daemon` must replace it. The process starts at once and takes seconds
    to be ready.
    """

    def __init__(self, writer: Callable[[], CheckpointWriter] = CheckpointWriter) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            # No fork: a process with CUDA and threads would not survive it. No multiprocessing: its children import the
            # main module again and die of the SIGTERM that a scheduler sends to all.
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env={
                    **os.environ,
                    "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
                    "CUDA_VISIBLE_DEVICES": "",  # else torch's writer opens a context on the GPU
                },
            )
        self._connection = Connection(ours.detach())
        self._arena: Arena | None = None
        self._killed = False
        with suppress(OSError):  # dead already; the first call raises
            self._connection.send_bytes(pickle.dumps(writer))
        self.deadline = float("inf")

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether the process is running."""
        return not self._killed and self._process.poll() is None

    def prepare(self, rank_plan: RankPlan, arena: Arena) -> None:
        """Set what the following saves write: the contents of `arena`. The same arena again costs nothing."""
        if arena is not self._arena:
            self._send("prepare", rank_plan, arena.slots, descriptor=arena.descriptor)
            self._answer()
            self._arena = arena

    def clear(self, request: SaveRequest) -> None:
        """See `save.Writer`."""
        self._call("clear", request)

    def write(self, request: SaveRequest) -> bytes:
        """See `save.Writer`."""
        receipt: bytes = self._call("write", request)
        return receipt

    def commit(self, request: SaveRequest, receipts: Sequence[bytes]) -> None:
        """See `save.Writer`."""
        self._call("commit", request, receipts)

    def copy(self, request: SaveRequest) -> None:
        """See `save.Writer`."""
        self._call("copy", request)

    def commit_copies(self, request: SaveRequest) -> None:
        """See `save.Writer`."""
        self._call("commit_copies", request)

    def superseded(self, request: SaveRequest) -> list[Path]:
        """See `save.Writer`."""
        folders: list[Path] = self._call("superseded", request)
        return folders

    def verify(self, request: SaveRequest) -> list[str]:
        """See `save.Writer`."""
        faults: list[str] = self._call("verify", request)
        return faults

    def delete(self, folders: Sequence[Path]) -> None:
        """See `save.Writer`."""
        self._call("delete", folders)

    def kill(self) -> int | None:
        """Kill the process, and wait up to 5 s for a system call to end; returns its exit code, if known."""
        self._killed = True
        self._process.kill()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(5.0)
        return self._process.returncode

    def close(self) -> None:
        """Release all resources; no method may be running."""
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
                raise SaveLostError(f"checkpoint daemon {self.pid} did not answer in time and was killed")
            value, failure = self._connection.recv()
        except (EOFError, OSError) as error:
            raise self._lost() from error
        if failure is not None:
            raise CheckpointError(failure)
        return value

    def _lost(self) -> SaveLostError:
        return SaveLostError(f"checkpoint daemon {self.pid} died (code {self.kill()})")


def _serve(connection: Connection) -> None:
    """Run the calls that arrive over `connection` one by one; exit as soon as its other end closes."""
    requests: queue.Queue[tuple[Any, ...]] = queue.Queue()
    writer: CheckpointWriter = pickle.loads(connection.recv_bytes())()  # noqa: S301  # from the trainer that started us

    def listen() -> None:
        try:
            while True:
                method, *arguments = connection.recv()
                if method == "prepare":
                    arguments.append(recv_handle(connection))
                requests.put((method, *arguments))
        except (EOFError, OSError):
            os._exit(0)  # even during a write: nobody is left to commit it

    threading.Thread(target=listen, daemon=True).start()
    while True:
        method, *arguments = requests.get()
        try:
            if method == "prepare":
                rank_plan, slots, descriptor = arguments
                writer.prepare(rank_plan, Arena(slots, descriptor).tensors)
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
    mask_output()
    # Schedulers send these to the whole job; the trainer's last save still needs the daemon.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    os.nice(NICENESS)
    torch.set_num_threads(1)
    _serve(Connection(int(sys.argv[1])))
