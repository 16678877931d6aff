"""An authenticated connection between two supervisors of one run: JSON objects, one on a line, each with a MAC.

Both sides hold the run's key, a file that only its owner can read in the folder that the nodes share. Each side opens
with a fresh nonce; the session's key is the HMAC of both nonces and the run's folder. Every line that follows starts
with the HMAC of its direction, its number and its text. So a line counts once, in its place, in its connection: one
that is forged, replayed or reordered is dropped. Messages are authenticated, not encrypted: they hold no secrets.
"""

from __future__ import annotations

import hmac
import json
import logging
import secrets
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from framework.run.key_file import shared_key
from framework.run.layout import COORDINATOR_KEY_FILE

log = logging.getLogger(__name__)

KEEPALIVE_S = 2.0
"""Interval at which each side sends an empty object (s)."""
LINK_TIMEOUT_S = 20.0
"""Silence after which the other side counts as lost (s). Only authentic lines break it."""
HANDSHAKE_S = 5.0
"""How long the other side may take to prove that it holds the key (s)."""
MAX_LINE = 1 << 16
"""Longest line (bytes). What exceeds it is discarded as it arrives."""
NONCE_BYTES = 32

Side = Literal["coordinator", "agent"]
OnDrop = Callable[[str], None]
"""Called with the reason for which a line or a connection was dropped: a word, under which drops are counted."""


class ForeignPeerError(ConnectionError):
    """The other side did not prove that it holds the run's key. `reason` is what drops are counted under."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"the other side did not prove that it belongs to the run: {reason}")
        self.reason = reason


def run_key(folder: Path) -> bytes:
    """Return the key of the run in `folder`; see `shared_key`."""
    return shared_key(folder / COORDINATOR_KEY_FILE)


class Session:
    """The MACs of one connection.

    Args:
        key: The run's key.
        run: The run's folder.
        side: This side.
        nonces: The coordinator's and the agent's.
    """

    def __init__(self, key: bytes, run: str, side: Side, nonces: tuple[bytes, bytes]) -> None:
        self._key = hmac.digest(
            key, b"\0".join([b"session", run.encode(), *(nonce.hex().encode() for nonce in nonces)]), "sha256"
        )
        self._own, self._other = (b"c", b"a") if side == "coordinator" else (b"a", b"c")
        self._sent = self._received = 0

    def seal(self, text: bytes) -> bytes:
        """Return the next line to send, without its end."""
        line = self._mac(self._own, self._sent, text) + b" " + text
        self._sent += 1
        return line

    def open(self, line: bytes) -> bytes | None:
        """Return the text of the next line received; None where it is not authentic, or not the next."""
        mac, _, text = line.partition(b" ")
        if not hmac.compare_digest(mac, self._mac(self._other, self._received, text)):
            return None
        self._received += 1
        return text

    def _mac(self, direction: bytes, number: int, text: bytes) -> bytes:
        return hmac.digest(self._key, b"%s %d %s" % (direction, number, text), "sha256").hex().encode()


class OverlongLineError(ValueError):
    """A line of more than `MAX_LINE` bytes. The next line can be read all the same."""


class Lines:
    """Reads lines of limited length by a deadline, whatever the other side sends and however slowly.

    Args:
        connection: The connected socket.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._buffer = b""
        self._discards = False

    def read(self, deadline: float) -> bytes:
        """Return the next line without its end. Raises `OverlongLineError`, `TimeoutError` at `deadline` (monotonic
        clock, s), and another `OSError` when the other side is gone.
        """
        while True:
            line, end, rest = self._buffer.partition(b"\n")
            if self._discards:
                self._buffer, self._discards = rest, not end
            elif len(line) > MAX_LINE:
                self._buffer, self._discards = rest, not end
                raise OverlongLineError(f"a line of more than {MAX_LINE} bytes")
            elif end:
                self._buffer = rest
                return line
            if b"\n" not in self._buffer:
                self._receive(deadline)

    def _receive(self, deadline: float) -> None:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("the other side is silent")
        self._connection.settimeout(left)
        fresh = self._connection.recv(MAX_LINE)
        if not fresh:
            raise ConnectionResetError("the other side has closed the connection")
        self._buffer += fresh


class Link:
    """An authenticated connection. Constructing it exchanges nonces and proofs; it raises `ForeignPeerError` when the
    other side does not prove within `HANDSHAKE_S` seconds that it holds the key, and another `OSError` when it is gone.

    Args:
        connection: The connected socket.
        key: The run's key.
        run: The run's folder.
        side: This side.
        on_drop: Called for each line that is dropped later on.
    """

    def __init__(self, connection: socket.socket, key: bytes, run: str, side: Side, on_drop: OnDrop) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._connection = connection
        self._on_drop = on_drop
        self._sending = threading.Lock()
        self._closed = threading.Event()
        self._lines = Lines(connection)
        self._session = self._handshake(key, run, side)
        threading.Thread(target=self._keep_alive, daemon=True).start()

    def _handshake(self, key: bytes, run: str, side: Side) -> Session:
        own, deadline = secrets.token_bytes(NONCE_BYTES), time.monotonic() + HANDSHAKE_S
        self._connection.settimeout(HANDSHAKE_S)
        self._connection.sendall(own.hex().encode() + b"\n")
        try:
            other = bytes.fromhex(self._lines.read(deadline).decode("ascii"))
            if len(other) != NONCE_BYTES:
                raise ValueError("not a nonce")
            nonces = (own, other) if side == "coordinator" else (other, own)
            session = Session(key, run, side, nonces)
            self._connection.sendall(session.seal(b"{}") + b"\n")
            proof = session.open(self._lines.read(deadline))
        except TimeoutError as error:
            raise ForeignPeerError("late") from error
        except OverlongLineError as error:
            raise ForeignPeerError("overlong") from error
        except ValueError as error:
            raise ForeignPeerError("malformed") from error
        if proof is None:
            raise ForeignPeerError("foreign")
        return session

    def send(self, **fields: Any) -> None:
        """Send an object. If the other side is gone, `listen` notices."""
        with suppress(OSError), self._sending:
            self._connection.sendall(self._session.seal(json.dumps(fields).encode()) + b"\n")

    def listen(self, receive: Callable[[dict[str, Any]], None]) -> None:
        """Call `receive` with each object until the other side is gone or silent. Drops lines that are not authentic,
        and objects for which `receive` raises `ValueError`.
        """
        heard = time.monotonic()
        with suppress(OSError):
            while not self._closed.is_set():
                try:
                    text = self._session.open(self._lines.read(heard + LINK_TIMEOUT_S))
                except OverlongLineError:
                    self._on_drop("overlong")
                    continue
                if text is None:
                    self._on_drop("foreign")
                    continue
                heard = time.monotonic()
                try:
                    if fields := json.loads(text):
                        receive(fields)
                except (ValueError, RecursionError) as error:
                    log.warning("dropped a message: %s", error)
                    self._on_drop("malformed")
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._closed.set()
        with suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
        self._connection.close()

    def _keep_alive(self) -> None:
        while not self._closed.wait(KEEPALIVE_S):
            self.send()
