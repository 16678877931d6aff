"""The port of the coordinator: it lets in whoever proves to belong to the run, and bounds what strangers cost."""

from __future__ import annotations

import errno
import logging
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from framework.launch.supervisor.link import ForeignPeerError, Link
from framework.run.drops import describe_drops, read_drop_counts
from framework.run.files import write_json
from framework.run.layout import DROPPED_FILE

log = logging.getLogger(__name__)

MAX_PENDING = 128
"""Connections that may be proving themselves at a time. One more ends the oldest: an agent needs milliseconds."""
MAX_RATE = 200
"""Connections accepted within a second. More wait in the kernel, or are refused there at no cost."""
REPORT_S = 30.0
"""Shortest time between two warnings, and between two writes of the counts (s)."""


class DropCounts:
    """How many connections and messages were dropped, by reason, over all attempts and requeues of the run.

    Args:
        folder: The run's folder, where `dropped.json` keeps the counts for `status` and for the metrics.
    """

    def __init__(self, folder: Path) -> None:
        self._file = folder / DROPPED_FILE
        self._counts = Counter(read_drop_counts(folder))
        self._lock = threading.Lock()
        self._reported = dict(self._counts)
        self._next = 0.0

    def add(self, reason: str) -> None:
        """Count one drop."""
        with self._lock:
            self._counts[reason] += 1

    def counts(self) -> dict[str, int]:
        """Return the counts by reason."""
        with self._lock:
            return dict(self._counts)

    def report(self, now: bool = False) -> None:
        """Log and write counts that have changed, every `REPORT_S` seconds at most, or `now`."""
        counts = self.counts()
        if counts == self._reported or (not now and time.monotonic() < self._next):
            return
        self._reported, self._next = counts, time.monotonic() + REPORT_S
        log.warning("dropped what does not belong to the run: %s", describe_drops(counts))
        try:
            write_json(self._file, counts, durable=False)
        except OSError as error:
            log.warning("%s: %s", self._file, error)


class Listener:
    """Accepts connections and hands on those that prove to hold the run's key. Constructing it opens the port, and
    raises `OSError` where that is taken.

    Args:
        address: Where to listen, host and port; port 0 picks a free one. An empty host is every address of this node.
        key: The run's key.
        run: The run's folder.
        receive: Called with each link on a thread of its own, which ends the link by returning.
        drops: Counts what is dropped.
    """

    def __init__(
        self, address: tuple[str, int], key: bytes, run: str, receive: Callable[[Link], None], drops: DropCounts
    ) -> None:
        self._key = key
        self._run = run
        self._receive = receive
        self._drops = drops
        self._pending: dict[socket.socket, None] = {}  # oldest first
        self._lock = threading.Lock()
        self._server = socket.create_server(address, family=socket.AF_INET, backlog=MAX_PENDING)
        self.address: tuple[str, int] = self._server.getsockname()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        second, accepted = 0, 0
        while True:
            try:
                connection, _ = self._server.accept()
            except OSError as error:  # no descriptors are left for the moment, or the other side is gone already
                if error.errno in (errno.EBADF, errno.EINVAL):
                    return
                time.sleep(0.1)
                continue
            try:
                self._admit(connection)
            except RuntimeError:  # no thread can be started for the moment
                connection.close()
                self._drops.add("crowded")
            now = time.monotonic()
            second, accepted = (second, accepted + 1) if int(now) == second else (int(now), 1)
            if accepted >= MAX_RATE:
                time.sleep(second + 1 - now)

    def _admit(self, connection: socket.socket) -> None:
        with self._lock:
            oldest = next(iter(self._pending)) if len(self._pending) >= MAX_PENDING else None
            if oldest is not None:
                del self._pending[oldest]
            self._pending[connection] = None
        if oldest is not None:
            self._drops.add("crowded")
            with suppress(OSError):
                oldest.shutdown(socket.SHUT_RDWR)  # its thread closes it
        threading.Thread(target=self._prove, args=(connection,), daemon=True).start()

    def _prove(self, connection: socket.socket) -> None:
        link = None
        try:
            link = Link(connection, self._key, self._run, "coordinator", self._drops.add)
        except OSError as error:
            connection.close()
            with self._lock:
                evicted = connection not in self._pending
            if not evicted:
                self._drops.add(error.reason if isinstance(error, ForeignPeerError) else "broken")
        finally:
            with self._lock:
                self._pending.pop(connection, None)
        if link is not None:
            self._receive(link)
