"""The HTTP server of a node's metrics: it reads nothing that it is sent but the path, and bounds what requests cost."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from framework.run.worker import SUPERVISOR

PATH = "/metrics"
MAX_CONNECTIONS = 8
"""Open at a time. One more ends the oldest: a scrape takes milliseconds."""
MAX_RATE = 20
"""Connections accepted within a second. More wait in the kernel, or are refused there at no cost."""
TIMEOUT_S = 5.0
"""Longest pause of a client (s)."""
FRESH_S = 1.0
"""How long an answer is given again (s), so that devices are not read for every request."""

StartResponse = Callable[[str, list[tuple[str, str]]], Any]


class MetricsApp:
    """The WSGI application: `GET /metrics`, and nothing else.

    Args:
        registry: What is shown.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self._lock = threading.Lock()
        self._answer = b""
        self._read = -FRESH_S

    def __call__(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        """Answer one request. Its body and its query are never read."""
        if environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
            start_response("405 Method Not Allowed", [("Allow", "GET, HEAD")])
            return []
        if environ.get("PATH_INFO") != PATH:
            start_response("404 Not Found", [])
            return []
        start_response("200 OK", [("Content-Type", CONTENT_TYPE_LATEST)])
        return [self._metrics()]

    def _metrics(self) -> bytes:
        with self._lock:
            if time.monotonic() >= self._read + FRESH_S:
                self._answer = generate_latest(self._registry)
                self._read = time.monotonic()
            return self._answer


class _Handler(WSGIRequestHandler):
    timeout = TIMEOUT_S

    def log_message(self, *arguments: Any) -> None:
        """Log nothing: training's output is no access log."""


class LimitedServer(ThreadingMixIn, WSGIServer):
    """A WSGI server of few connections at a time, and few a second."""

    daemon_threads = True
    request_queue_size = 16

    def __init__(self, address: tuple[str, int]) -> None:
        self._open: dict[socket.socket, None] = {}  # oldest first
        self._guard = threading.Lock()
        self._second, self._accepted = 0, 0
        super().__init__(address, _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serve a connection on a thread of its own, at the expense of the oldest if there are too many."""
        with self._guard:
            oldest = next(iter(self._open)) if len(self._open) >= MAX_CONNECTIONS else None
            if oldest is not None:
                del self._open[oldest]
            self._open[request] = None
        if oldest is not None:
            with suppress(OSError):
                oldest.shutdown(socket.SHUT_RDWR)  # its thread closes it
        super().process_request(request, client_address)
        now = time.monotonic()
        self._second, self._accepted = (int(now), 1 + (self._accepted if int(now) == self._second else 0))
        if self._accepted >= MAX_RATE:
            time.sleep(self._second + 1 - now)

    def shutdown_request(self, request: Any) -> None:
        """Close a connection that has been served."""
        with self._guard:
            self._open.pop(request, None)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of a client that went away or was ended."""


def serve(registry: CollectorRegistry, address: str, port: int) -> LimitedServer:
    """Serve `registry` on a thread, at `http://address:port/metrics`. Raises `OSError` where the port is taken."""
    server = LimitedServer((address, port))
    server.set_app(MetricsApp(registry))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def default_address(environment: dict[str, str]) -> str:
    """Return the address to bind where the recipe names none: in a job that of the node's name, by which the others
    know it, and every address where that name stands for this machine alone; outside of a job this machine's own.
    """
    if SUPERVISOR not in environment:
        return "127.0.0.1"
    try:
        address = socket.gethostbyname(socket.gethostname())
    except OSError:
        return "0.0.0.0"
    return "0.0.0.0" if address.startswith("127.") else address
