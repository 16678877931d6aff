"""Attacks on a node's metrics endpoint: it stays read-only, answers scrapes, and takes few descriptors."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from framework.run.drops import describe_drops
from framework.run.files import write_json
from framework.run.layout import DROPPED_FILE
from framework.run.worker import SUPERVISOR
from framework.tracking import endpoint
from framework.tracking.endpoint import LimitedServer, default_address, serve
from framework.tracking.prometheus import Node

WAIT_S = 20.0


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LimitedServer]:
    monkeypatch.setenv("SECRET_TOKEN", "hf_" + "a" * 34)
    registry = CollectorRegistry()
    registry.register(Node("demo", 1, tmp_path))
    server = serve(registry, "127.0.0.1", 0)
    yield server
    server.shutdown()
    server.server_close()


def answer(server: LimitedServer, request: bytes) -> bytes:
    """All that the server sends back."""
    received = b""
    with socket.create_connection(server.server_address[:2], timeout=WAIT_S) as client, suppress(ConnectionError):
        client.sendall(request)
        while data := client.recv(65536):
            received += data
    return received


def _serving() -> set[threading.Thread]:
    """The threads that serve a connection."""
    return {thread for thread in threading.enumerate() if "process_request" in thread.name}


def scrapes(server: LimitedServer) -> bool:
    return b"framework_training{" in answer(server, b"GET /metrics HTTP/1.0\r\n\r\n")


ATTACKS = {
    "POST": (b"POST /metrics HTTP/1.0\r\nContent-Length: 5\r\n\r\nhello", b" 405 "),
    "PUT": (b"PUT /metrics HTTP/1.0\r\n\r\n", b" 405 "),
    "DELETE": (b"DELETE /metrics HTTP/1.0\r\n\r\n", b" 405 "),
    "TRACE": (b"TRACE /metrics HTTP/1.0\r\nX: secret\r\n\r\n", b" 405 "),
    "another path": (b"GET /debug/pprof HTTP/1.0\r\n\r\n", b" 404 "),
    "the root": (b"GET / HTTP/1.0\r\n\r\n", b" 404 "),
    "a file": (b"GET /../../../../etc/passwd HTTP/1.0\r\n\r\n", b" 404 "),
    "a proxy's request": (b"GET http://169.254.169.254/latest HTTP/1.0\r\n\r\n", b" 404 "),
    "a long line": (b"GET /" + b"a" * 70_000 + b" HTTP/1.0\r\n\r\n", b" 414 "),
    "many headers": (b"GET /metrics HTTP/1.0\r\n" + b"A: b\r\n" * 500 + b"\r\n", b" 431 "),
    "a long header": (b"GET /metrics HTTP/1.0\r\nA: " + b"b" * 70_000 + b"\r\n\r\n", b" 431 "),
    "no HTTP": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", b" 400 "),
    "a body that never comes": (b"GET /metrics HTTP/1.0\r\nContent-Length: 1000000000\r\n\r\n", b" 200 "),
}


@pytest.mark.attack("endpoint", "other methods, paths, sizes and protocols", "turned away, nothing told")
@pytest.mark.guarantee("A node's metrics endpoint is read-only, and stays available while strangers hold connections")
@pytest.mark.parametrize("name", ATTACKS)
def test_an_odd_request_is_turned_away_and_the_next_scrape_served(name: str, server: LimitedServer) -> None:
    request, status = ATTACKS[name]
    received = answer(server, request)
    assert status in received.split(b"\r\n")[0] + b" "
    assert b"secret" not in received.lower()
    assert b"hf_aaa" not in received
    assert scrapes(server)


@pytest.mark.attack("endpoint", "connections that are held open", "scrapes are served")
@pytest.mark.guarantee("A node's metrics endpoint is read-only, and stays available while strangers hold connections")
def test_connections_that_are_held_open_keep_no_scrape_out(server: LimitedServer) -> None:
    before = set(threading.enumerate())  # other tests may have left some
    held = [socket.create_connection(server.server_address[:2]) for _ in range(30)]
    for connection in held:
        connection.sendall(b"GET /metrics HTTP/1.0\r\nA: ")
    assert scrapes(server)
    deadline = time.monotonic() + WAIT_S  # a thread whose connection was ended still has to notice
    while len(_serving() - before) > endpoint.MAX_CONNECTIONS and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(_serving() - before) <= endpoint.MAX_CONNECTIONS
    for connection in held:
        connection.close()


@pytest.mark.attack("endpoint", "a client that pauses", "ended")
def test_a_client_that_pauses_is_ended(server: LimitedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint._Handler, "timeout", 0.2)
    began = time.monotonic()
    assert answer(server, b"GET /metr") == b""
    assert time.monotonic() - began < WAIT_S / 2


@pytest.mark.attack("endpoint", "a flood of requests", "served at a limited rate")
def test_requests_are_served_at_a_limited_rate_and_read_the_devices_once(
    server: LimitedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoint, "MAX_RATE", 5)
    monkeypatch.setattr(endpoint, "FRESH_S", 100.0)
    reads: list[int] = []
    original = endpoint.generate_latest
    monkeypatch.setattr(endpoint, "generate_latest", lambda registry: (reads.append(1), original(registry))[1])
    began = time.monotonic()
    assert all(scrapes(server) for _ in range(12))
    assert time.monotonic() - began > 1.0
    assert len(reads) == 1


@pytest.mark.attack("endpoint", "counts that are no counts", "left out")
def test_what_the_coordinator_dropped_is_shown_by_the_first_node(
    server: LimitedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_json(tmp_path / DROPPED_FILE, {"foreign": 12, "late": "many", "alien": -1})
    received = answer(server, b"GET /metrics HTTP/1.0\r\n\r\n").decode()
    (line,) = [line for line in received.splitlines() if line.startswith("framework_coordinator_dropped_total{")]
    assert 'reason="foreign"' in line
    assert line.endswith(" 12.0")
    assert describe_drops({"late": 1, "foreign": 12}) == "foreign 12, late 1"


@pytest.mark.attack("endpoint", "a scrape from outside of the job", "not bound there")
def test_outside_of_a_job_it_is_for_this_machine_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert default_address({}) == "127.0.0.1"
    monkeypatch.setattr(socket, "gethostbyname", lambda name: "192.0.2.7")
    assert default_address({SUPERVISOR: "1"}) == "192.0.2.7"
    monkeypatch.setattr(socket, "gethostbyname", lambda name: "127.0.1.1")
    assert default_address({SUPERVISOR: "1"}) == "0.0.0.0"
